"""Every kind of export gives ids, pixels, logits and answers of this library, in the transformers that is installed and
in the oldest one that an export's README.md names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from export_helpers import KINDS, source_of, write_expected
from read_export import compare
from run_helpers import ROOT

from asvr.interchange.llava_folder import OLDEST_TRANSFORMERS

OLDEST = ROOT / "tests/oldest_transformers.txt"  # what .ci/run installs into the folder that READER names
READER = "ASVR_OLDEST_TRANSFORMERS"
# Where transformers 4 looks for settings of rotary embeddings.
OLD_FIELDS = {
    "llava-gemma3": dict(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=dict(rope_type="linear", factor=8.0)),
    "llava-phi3": dict(rope_theta=1e4, partial_rotary_factor=0.5),
    "llava-phi3-128k": dict(rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1], long_factor=[1.0, 4.0])),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        write_expected(source_of(kind), root / kind)
    return root


def require_same(found: dict) -> None:
    assert found.pop("logits", 1.0) <= 1e-5, found
    assert found == dict(found, ids=True, pixels=True, answers=True, batched=True, keys=[]), found


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_and_answers_the_same(kind, folders):
    require_same(compare(folders / kind))
    fields = json.loads((folders / kind / "config.json").read_text())["text_config"]
    old = OLD_FIELDS.get(kind, {})
    assert {field: fields[field] for field in old} == old


def test_a_folder_with_another_setting_is_not_the_same(folders, tmp_path):
    """What `compare` is for: a setting that is read wrongly changes the logits."""
    for name in ("llava-qwen3", "llava-qwen3.expected"):
        os.symlink(folders / name, tmp_path / name) if name.endswith("expected") else (tmp_path / name).mkdir()
    for file in (folders / "llava-qwen3").iterdir():
        text = file.read_bytes()
        (tmp_path / "llava-qwen3" / file.name).write_bytes(text)
    config = tmp_path / "llava-qwen3/config.json"
    fields = json.loads(config.read_text())
    fields["text_config"]["rope_parameters"]["rope_theta"] *= 3
    config.write_text(json.dumps(fields))
    found = compare(tmp_path / "llava-qwen3")
    assert found["ids"] and found["pixels"] and found["logits"] > 1e-4


def test_the_oldest_transformers_is_the_one_that_is_named():
    pinned = dict(line.split("==") for line in OLDEST.read_text().split() if line)
    assert pinned["transformers"].startswith(f"{OLDEST_TRANSFORMERS}.")


@pytest.mark.skipif(READER not in os.environ, reason=f"{READER} names no folder with tests/oldest_transformers.txt")
def test_the_oldest_transformers_computes_and_answers_the_same(folders):
    """``pip install --no-deps --target DIR -r tests/oldest_transformers.txt``, as .ci/run does."""
    environment = dict(os.environ, PYTHONPATH=os.environ[READER])
    program = [sys.executable, ROOT / "tests/helpers/read_export.py", *(folders / kind for kind in KINDS)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.pop("folder") for line in lines] == list(KINDS)
    for line in lines:
        assert line.pop("version").startswith(f"{OLDEST_TRANSFORMERS}."), line
        require_same(line)
