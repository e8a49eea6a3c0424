"""Codes computed ahead: the same losses as online, whoever computed them and however often it was interrupted."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from run_helpers import ROOT, TINY, call_tool, read_metrics, tiny_env

from asvr.engine.codes import store_of

OPTIONS = TINY | {
    "stages.blind.schedule.steps": 1,
    "stages.pretrain.schedule.steps": 3,
    "schedule.steps": 4,
    "runtime.log_interval": 1,
}
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def config(tiny_run, tmp_path_factory):
    """The mini config, tiny, with a target whose tokenizer stands in a folder."""
    (tokenizer,) = (tiny_run / "tokenizers").glob("semantic-*")
    file = tmp_path_factory.mktemp("config") / "codes.py"
    target = dict(
        name="semantic",
        tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=8, name=str(tokenizer)),
        head=dict(type="DepthTransformerHead", width=16, layers=1, num_heads=4),
        loss=dict(type="CodeCrossEntropy"),
        weight=0.3,
        shift=1,
    )
    file.write_text(f"_base_ = ['{ROOT}/configs/asvr_mini.py']\nmodel = dict(reconstruction=[{target!r}])\n")
    return file


def run(tool: str, config, *arguments, own_process: bool = False, **options) -> subprocess.CompletedProcess:
    values = [f"{key}={value}" for key, value in (OPTIONS | options).items()]
    command = [f"tools/{tool}", str(config), *map(str, arguments), "--cfg-options", *values]
    if not own_process:
        return call_tool(*command)
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=tiny_env(), capture_output=True, text=True)


def losses(work_dir) -> list:
    return [{k: v for k, v in line.items() if re.match("loss|text|semantic", k)} for line in read_metrics(work_dir)]


def test_training_on_codes_computed_ahead_is_bitwise_the_same(config, tmp_path):
    online = run("train.py", config, "--work-dir", tmp_path / "online", **{"data.cache": False})
    assert online.returncode == 0, online.stderr
    cache = tmp_path / "cache"
    for shard in ("0/2", "1/2"):
        own = dict(own_process=shard == "0/2")
        done = run("cache_codes.py", config, "--out", cache, "--shard", shard, "--workers", 1, **own)
        assert done.returncode == 0, done.stderr
        assert "GB of disk" in done.stderr + done.stdout and "data.cache='codes'" in done.stdout
    options = {"data.cache": "codes", "data.cache_dir": cache}
    stored = run("train.py", config, "--work-dir", tmp_path / "stored", **options)
    assert stored.returncode == 0, stored.stderr
    assert re.search(r"codes of semantic: all \d+ images are in", stored.stderr + stored.stdout)
    assert losses(tmp_path / "stored") == losses(tmp_path / "online") and len(losses(tmp_path / "online")) >= 8
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("online", "stored"))
    assert all(first[stage]["accuracy"] == second[stage]["accuracy"] for stage in first)


def test_a_partial_cache_is_named_and_completed(config, tmp_path):
    assert run("cache_codes.py", config, "--out", tmp_path).returncode == 0
    (store,) = tmp_path.glob("semantic-*")
    data = store / "codes.0-of-1.bin"
    whole = data.read_bytes()
    rows = len((store / "index.0-of-1.jsonl").read_text().splitlines())
    os.truncate(data, len(whole) - len(whole) // rows)
    done = run("cache_codes.py", config, "--out", tmp_path)
    text = done.stderr + done.stdout
    assert done.returncode == 0 and "1 rows of its index are missing" in text
    assert f"1 of {rows} images are missing" in text and data.read_bytes() == whole
    other = run("cache_codes.py", config, "--out", tmp_path, **{"data.image_aspect": "pad"})
    assert other.returncode == 0 and len(list(tmp_path.glob("semantic-*"))) == 2  # other codes, another store


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "give --out DIR, or set data.cache_dir"),
        (("--out", "x", "--shard", "2/2"), {}, "--shard 2/2: expected i/n with i from 0"),
        (("--out", "x"), {"stages.finetune.model.encoder.image_size": 32}, "stages.finetune has another encoder"),
    ],
)
def test_what_cannot_be_cached_is_one_clear_line(arguments, options, message, config, tmp_path):
    arguments = [tmp_path / part if part == "x" else part for part in arguments]
    done = run("cache_codes.py", config, *arguments, **options)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("semantic-*"))


@pytest.mark.parametrize("change", [{}, dict(type="SoftCodeTarget", temperature=1.0, top=2)])
def test_a_target_that_is_fitted_in_the_run_is_refused(change, tmp_path):
    options = {f"model.reconstruction.0.{key}": value for key, value in change.items()}
    done = run("cache_codes.py", ROOT / "configs" / "asvr_mini.py", "--out", tmp_path, **options)
    assert done.returncode != 0 and "has `fit`: fit it first with asvr train-tokenizer" in done.stderr


def test_codes_of_a_shared_encoder_depend_on_its_config(tmp_path):
    """Of a component without weights, a fingerprint of weights says nothing."""
    tokenizer = SimpleNamespace(
        fingerprint=lambda: "same", transform="same", num_tokens=4, depth=2, codebook_sizes=[8, 8]
    )
    target = dict(tokenizer=dict(type="SemanticTokenizer"))
    folders = [
        store_of(tmp_path, "semantic", tokenizer, target, "pad", encoder).folder
        for encoder in (dict(type="Mine", pool=2), dict(type="Mine", pool=3), None, dict(type="Mine", pool=2))
    ]
    assert len(set(folders)) == 3 and folders[0] == folders[3]
