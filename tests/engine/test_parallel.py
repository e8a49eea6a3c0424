"""Several processes train what one process trains: the same losses and the same weights, in float32 and up to rounding.

Real processes on the CPU, which talk through gloo. One start of processes does several runs, since starting them takes
longer than a run.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from engine_helpers import tiny_model, without_bias_of_keys
from parallel_helpers import STEPS, images_of_steps, interrupted, launch, losses, make_config, train
from run_helpers import call_tool, tiny_command
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from transformers import LlavaForConditionalGeneration

from asvr.base.distributed import processes
from asvr.data.batch import Batch
from asvr.engine import sharded
from asvr.engine.parallel import FSDP2 as Sharded
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config

# Sums over processes are added up in another order than over micro-batches.
OF_LOSSES, OF_WEIGHTS = dict(rel=2e-5, abs=2e-6), 2e-6

PACKED = {"data.pack": dict(max_tokens=64, max_images=2)}
CHECKPOINTING = {"model.llm.activation_checkpointing": "full"}
BALANCED = {"data.balance": True}
AUTO = {"model.llm.activation_checkpointing": "auto"}
FROZEN = {"stages.finetune.train": ["projector", "heads"]}
# Of each: what one process has, and what several have besides. Those of one name are compared.
SAME = {
    "plain": {},
    "validated": {
        "stages.finetune.validation": dict(
            dataset=dict(type="LlavaDataset"), interval=3, batch_size=2, max_new_tokens=2
        ),
        "stages.finetune.visualizer": "local",
    },
    "half": {"optim.precision": "bf16"},
    # The stage trains the LLM in bfloat16 beside a projector and heads in float32. bfloat16 adds nothing up exactly.
    "split": {"model.llm.dtype": "bfloat16", "optim.moments": "bfloat16"},
    "packed": PACKED,
    "frozen": FROZEN,
    "encoder": {
        "data.cache": False,
        "model.reconstruction": [],
        "data.on_error": "skip",  # images without text, from which nothing is learned then
        "stages.pretrain.train": ["projector"],
        "stages.finetune.train": ["encoder", "projector", "llm"],
    },
}
DDP, FSDP2 = {"parallel.type": "DDP"}, {"parallel.type": "FSDP2"}
BY_TWO = {
    "plain-ddp": DDP,
    "plain-fsdp": FSDP2,
    "plain-fsdp-checkpointing-once": FSDP2 | CHECKPOINTING | {"parallel.reduce_each": False},
    "plain-fsdp-auto": FSDP2 | AUTO,
    "packed-fsdp": FSDP2,
    "packed-ddp": DDP,
    "packed-fsdp-balanced": FSDP2 | BALANCED,
    "encoder-ddp-balanced": DDP | BALANCED,
    "frozen-fsdp": FSDP2,
    "plain-offload": FSDP2 | {"parallel.cpu_offload": True},
    "encoder-fsdp": FSDP2,
    "encoder-ddp": DDP,
    "validated-fsdp": FSDP2,
    "split-ddp": DDP | {"parallel.bucket_mb": 0.01},  # several buckets
    "split-fsdp": FSDP2 | CHECKPOINTING,
    "half-fsdp": FSDP2 | {"parallel.param_dtype": "bfloat16", "parallel.reduce_dtype": "float32"},
}
BY_FOUR = {
    "plain-fsdp": FSDP2,
    "packed-hybrid": FSDP2 | {"parallel.shard": 2},
    "frozen-replicate": FSDP2 | {"parallel.frozen": "replicate"},
}
KINDS = {"plain-ddp": DDP, "plain-fsdp": FSDP2}
SPLIT = {"split-ddp": BY_TWO["split-ddp"], "split-fsdp": BY_TWO["split-fsdp"]}
NEAR = ("half", "split")  # they compute in bfloat16, so they are not compared at the tolerances above


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> dict[str, Path]:
    """The runs of one process, by name."""
    folder = tmp_path_factory.mktemp("one")
    questions = dict(type="LlavaDataset", ann_file=str(config.parent / "questions.json"))
    SAME["validated"]["stages.finetune.validation"]["dataset"] = questions
    for name, options in SAME.items():
        train(config, folder / name, options)
    return {name: folder / name for name in SAME}


def runs(config: Path, folder: Path, cases: dict) -> list[dict]:
    return [
        dict(config=str(config), work_dir=str(folder / name), options=SAME[name.split("-")[0]] | options)
        for name, options in cases.items()
    ]


def rest(config: Path, work_dir: Path, options: dict) -> dict:
    return dict(config=str(config), work_dir=str(work_dir), options=options, only="finetune")


@pytest.fixture(scope="module")
def by_two(config, alone, tmp_path_factory) -> dict[str, Path]:
    """The runs of two processes, by name."""
    folder = tmp_path_factory.mktemp("two")
    begun_by_one = [
        rest(config, interrupted(alone["plain"], folder / f"{name}-begun-by-one"), options)
        for name, options in KINDS.items()
    ]
    again = [
        rest(config, folder / f"{name}-again", SAME["split"] | options) | dict(copy_of=str(folder / name))
        for name, options in SPLIT.items()
    ]
    launch(folder, runs(config, folder, BY_TWO) + begun_by_one + again, 2)
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def by_four(config, by_two, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("four")
    begun_by_two = [
        rest(config, interrupted(by_two[name], folder / f"{name}-begun-by-two"), options)
        for name, options in KINDS.items()
    ]
    launch(folder, runs(config, folder, BY_FOUR) + begun_by_two, 4)
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


@pytest.fixture(params=["by_two", "by_four"])
def shared(request) -> dict[str, Path]:
    return request.getfixturevalue(request.param)


def weights(work_dir: Path, stage: str = "finetune", step: int = STEPS) -> dict[str, torch.Tensor]:
    return read(work_dir / stage / "checkpoints" / f"step_{step:08d}")


def read(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, put together where each process has written its part."""
    if (checkpoint / "model.safetensors").is_file():
        return load_file(checkpoint / "model.safetensors")
    found = {key: torch.empty(shape) for key, shape in sharded.shapes(checkpoint / "weights").items()}
    sharded.read(checkpoint / "weights", found)
    return found


def assert_same_losses(own: Path, other: Path) -> None:
    lines, expected = losses(own), losses(other)
    assert len(lines) == len(expected) > 0
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        for key, value in wanted.items():
            assert line[key] == (value if key == "stage" else pytest.approx(value, **OF_LOSSES)), (wanted["step"], key)


def assert_same_weights(own: dict, other: dict) -> None:
    assert own.keys() == other.keys()
    for key, value in other.items():
        kept = without_bias_of_keys(key, own[key]), without_bias_of_keys(key, value)
        torch.testing.assert_close(*kept, rtol=0, atol=OF_WEIGHTS, msg=lambda text, key=key: f"{key}: {text}")


def test_the_rows_are_spread_unevenly():
    """In some steps one process has images and another has none."""
    for world in (2, 4):
        assert any(min(counts) == 0 < max(counts) for counts in images_of_steps(world))


def test_the_same_losses_and_weights(shared, alone):
    for name, work_dir in shared.items():
        if name.startswith(NEAR):
            continue
        one = alone[name.split("-")[0]]
        assert_same_losses(work_dir, one)
        assert_same_weights(weights(work_dir), weights(one))


def test_training_moves_the_weights_by_more_than_the_tolerance(alone):
    before, after = weights(alone["plain"], step=2), weights(alone["plain"])
    assert all((after[key] - before[key]).abs().max() > 100 * OF_WEIGHTS for key in after)


def test_what_is_written_is_what_one_process_writes(shared, alone):
    for name, work_dir in shared.items():
        one = alone[name.split("-")[0]]
        names = [{p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()} for d in (work_dir, one)]
        other = [
            n for n in names[0] ^ names[1] if "mmengine" not in n and "weights/" not in n and "optimizer/" not in n
        ]
        assert {Path(n).name for n in other} <= {"model.safetensors"}, name
        metas = [
            json.loads((d / f"finetune/checkpoints/step_{STEPS:08d}/checkpoint.json").read_text())
            for d in (work_dir, one)
        ]
        fingerprints = [{k: v["fingerprint"] for k, v in meta["frozen"].items()} for meta in metas]
        assert fingerprints[0] == fingerprints[1], name
        if name.startswith(NEAR):
            continue
        results = [json.loads((d / "results.json").read_text())["finetune"] for d in (work_dir, one)]
        for key, value in results[1]["losses"].items():
            assert results[0]["losses"][key] == pytest.approx(value, rel=1e-4), name


def test_automatic_checkpointing_is_planned(by_two):
    log = (by_two["plain-fsdp-auto"] / "train.log").read_text()
    assert re.search(r"activation checkpointing: recomputes 0 of \d+ blocks of the LLM \(.* GiB are usable\)", log)


def test_weights_in_the_memory_of_the_cpu_train_the_same_bit_for_bit(by_two):
    own, other = weights(by_two["plain-offload"]), weights(by_two["plain-fsdp"])
    assert all(torch.equal(own[key], value) for key, value in other.items())
    assert losses(by_two["plain-offload"]) == losses(by_two["plain-fsdp"])


def test_weights_wait_on_the_cpu_and_frozen_ones_on_the_device():
    """With torch's own policy, whose memory is pinned for CUDA alone."""
    model = tiny_model(("projector", "heads"))
    with processes(dict(all=dict(type="FSDP2")), "cpu"):
        Sharded(module=model, device=torch.device("cpu"), cpu_offload=True, frozen="replicate")
        groups = [unit._get_fsdp_state()._fsdp_param_group for unit in model.modules() if isinstance(unit, FSDPModule)]
    params = [param for group in groups if group is not None for param in group.fsdp_params]
    assert {(param.offload_to_cpu, param.pin_memory) for param in params} == {(True, False)}
    assert model.compute_device == torch.device("cpu")
    assert all(param.sharded_param.requires_grad for param in params)


@pytest.mark.parametrize("offload, backend", [(True, "cuda:nccl,cpu:gloo"), (False, "nccl")])
def test_gradients_on_the_cpu_are_added_up_by_gloo(offload, backend, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with processes(dict(a=dict(type="DDP"), b=dict(type="FSDP2", cpu_offload=offload)), "auto"):
        assert asked == [backend]


def test_validation_is_one_process_own(by_two, alone):
    own, other = (folder / "validation.jsonl" for folder in (by_two["validated-fsdp"], alone["validated"]))
    lines, expected = ([json.loads(line) for line in file.read_text().splitlines()] for file in (own, other))
    assert [line["step"] for line in lines] == [line["step"] for line in expected] == [3, 4]
    for line, wanted in zip(lines, expected, strict=True):
        assert line["losses"] == pytest.approx(wanted["losses"], rel=1e-4)
    assert read(by_two["validated-fsdp"] / "finetune" / "best").keys() == weights(alone["validated"]).keys()


def test_one_process_of_several_tracks(by_two, alone):
    found = []
    for work_dir in (by_two["validated-fsdp"], alone["validated"]):
        folder = work_dir / "finetune" / "vis_data"
        lines = [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]
        images = {file.name for file in (folder / "vis_image").rglob("*.png")}
        found.append(([(line["step"], sorted(line)) for line in lines], images))
    assert found[0] == found[1]
    assert [step for step, names in found[0][0] if "train/loss" in names] == [1, 2, 3, 4]
    assert len(found[0][1]) == 6  # two images, of two validations and an evaluation


def test_half_precision_is_near(by_two, alone):
    """Blocks gathered in bfloat16 compute as autocast does, but for norms; gradients are added up in float32."""
    for line, wanted in zip(losses(by_two["half-fsdp"]), losses(alone["half"]), strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=5e-3)
    checkpoint = by_two["half-fsdp"] / "finetune" / "checkpoints" / f"step_{STEPS:08d}"
    for file in (checkpoint / "weights").glob("*.safetensors"):
        assert all(value.dtype == torch.float32 for value in load_file(file).values())


@pytest.mark.parametrize("name", SPLIT)
def test_bfloat16_weights_train_as_in_one_process(name, by_two, alone):
    """Up to the rounding of bfloat16: gradients of a micro-batch have 8 bits."""
    lines, expected = losses(by_two[name]), losses(alone["split"])
    for line, wanted in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=2e-3)
        assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-2)
    own, other, before = weights(by_two[name]), weights(alone["split"]), weights(alone["split"], step=2)
    for key, value in other.items():
        off, moved = (one.float().sub(two.float()).norm() for one, two in ((own[key], value), (before[key], value)))
        assert off < 0.35 * moved, key


@pytest.mark.parametrize("name", SPLIT)
def test_bfloat16_weights_go_on_bit_for_bit(name, by_two):
    """Weights, moments, and the bits that bfloat16 lacks, which decide the weights of the steps that follow."""
    both = by_two[name], by_two[f"{name}-again"]
    own, other = (folder / "finetune" / "checkpoints" / f"step_{STEPS:08d}" for folder in both)
    assert "goes on from step 2 of 4" in (by_two[f"{name}-again"] / "train.log").read_text()
    assert json.loads((own / "checkpoint.json").read_text())["sha256"].keys() == (
        json.loads((other / "checkpoint.json").read_text())["sha256"].keys()
    )
    assert all(torch.equal(value, read(other)[key]) for key, value in read(own).items())
    if name == "split-ddp":
        states = [torch.load(folder / "state.pt", weights_only=True)["optimizer"]["state"] for folder in (own, other)]
        states = [{(n, key): value for n, one in state.items() for key, value in one.items()} for state in states]
    else:
        states = [load_shards(folder / "optimizer") for folder in (own, other)]
    dtypes = {str(key).rpartition(".")[2].strip("(')"): value.dtype for key, value in states[0].items()}
    assert torch.bfloat16 in dtypes.values() and torch.int16 in dtypes.values()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def load_shards(folder: Path) -> dict:
    files = sorted(folder.glob("*.safetensors"))
    return {(file.name, key): value for file in files for key, value in load_file(file).items()}


def test_a_sharded_run_goes_to_hugging_face(by_two, tmp_path):
    done = call_tool("tools/convert.py", "export", by_two["plain-fsdp"], tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    there, own = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf"), weights(by_two["plain-fsdp"])
    assert torch.equal(there.lm_head.weight, own["llm.model.lm_head.weight"])
    block = there.model.language_model.layers[1].mlp.up_proj.weight
    assert torch.equal(block, own["llm.model.model.layers.1.mlp.up_proj.weight"])


def test_they_went_on_where_others_had_stopped(by_two, by_four):
    """Begun by one process and ended by two, begun by two and ended by four: compared above."""
    for work_dir in (by_two[f"{name}-begun-by-one"] for name in KINDS):
        assert "finetune goes on from step 2 of 4" in (work_dir / "train.log").read_text()
    for work_dir in (by_four[f"{name}-begun-by-two"] for name in KINDS):
        assert "finetune goes on from step 2 of 4" in (work_dir / "train.log").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_one_process_goes_on_where_several_have_stopped(name, config, by_two, alone, tmp_path):
    work_dir = interrupted(by_two[name], tmp_path / "run")
    train(config, work_dir, {}, only="finetune")
    assert_same_losses(work_dir, alone["plain"])
    assert_same_weights(weights(work_dir), weights(alone["plain"]))


@pytest.mark.parametrize("kind", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_one_process_may_have_a_wrapper_too(kind, config, alone, tmp_path):
    train(config, tmp_path / "run", SAME["plain"] | kind)
    assert_same_losses(tmp_path / "run", alone["plain"])
    assert_same_weights(weights(tmp_path / "run"), weights(alone["plain"]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_a_wrapper_on_one_card(kind, config, tmp_path):
    """NCCL, and copies out of the card's memory for checkpoints."""
    on_card = {"runtime.device": "cuda", "optim.precision": "float32"}
    for name, options in dict(plain={}, wrapped=kind).items():
        train(config, tmp_path / name, on_card | options)
    assert_same_losses(tmp_path / "wrapped", tmp_path / "plain")
    kept = interrupted(tmp_path / "wrapped", tmp_path / "again")
    train(config, kept, on_card | kind, only="finetune")
    assert_same_losses(kept, tmp_path / "plain")


def test_convolutions_with_channels_last_are_not_cut(tmp_path):
    """The mini config's encoder; FSDP refuses such weights."""
    _, *command = tiny_command(tmp_path / "run")
    done = call_tool(*command, "parallel.type=FSDP2", "stages.blind.evaluation=None", "schedule.steps=4")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/finetune/checkpoints/step_00000004/weights").is_dir()


def test_an_empty_micro_batch_has_nothing_to_learn():
    batch = Batch.blank(packed=True)
    assert (batch.num_images, batch.num_text_targets, batch.num_visual_targets(1)) == (0, 0, 0)


def check(config: Path, options: dict, world: int = 2, **env) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        for key, value in env.items():
            patch.setenv(key, value)
        cfg = load_config(config, options)
        parallel = {name: stage.parallel for name, stage in Recipe(cfg).stages.items()}
        with processes(parallel, cfg.runtime.device):
            raise AssertionError("it joined")


def test_mistakes_are_told_before_anything_is_built(config):
    with pytest.raises(ValueError, match="WORLD_SIZE=2, and stage pretrain has no `parallel`: add parallel=dict"):
        check(config, {})
    with pytest.raises(ValueError, match="parallel.shard=3 .*expected a divisor of the 4 processes"):
        check(config, FSDP2 | {"parallel.shard": 3}, world=4)
    with pytest.raises(ValueError, match="runtime.device='cuda:0' with 2 processes"):
        check(config, DDP | {"runtime.device": "cuda:0"})
    with pytest.raises(ValueError, match="srun has started 8 processes, but MASTER_ADDR and MASTER_PORT is not set"):
        check(config, DDP, SLURM_STEP_NUM_TASKS="8", SLURM_PROCID="0", SLURM_LOCALID="0")
    with pytest.raises(ValueError, match="parallel.shards: FSDP2 has no such field; did you mean 'shard'"):
        check_config(load_config(config, FSDP2 | {"parallel.shards": 2}))
    with pytest.raises(ValueError, match="parallel.type='FSDP': no such way of sharing a step; did you mean 'FSDP2'"):
        check_config(load_config(config, {"parallel.type": "FSDP"}))
    with pytest.raises(ValueError, match="parallel.param_dtype='bf16': expected one of None, 'float32', 'bfloat16'"):
        check_config(load_config(config, FSDP2 | {"parallel.param_dtype": "bf16"}))
    with pytest.raises(ValueError, match="parallel.frozen='sharded': expected one of 'shard', 'replicate'"):
        check_config(load_config(config, FSDP2 | {"parallel.frozen": "sharded"}))
    with pytest.raises(ValueError, match="parallel='FSDP2'"):
        train(config, config.parent / "none", {"parallel": "FSDP2"})
    with pytest.raises(
        ValueError,
        match="parallel.type='MMDistributedDataParallel': it cannot share an optimisation step .*; known: DDP, FSDP2",
    ):
        check_config(load_config(config, {"parallel.type": "MMDistributedDataParallel"}))


def test_half_weights_that_cannot_be_shared_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="parallel.cpu_offload: trained weights are torch.bfloat16: set dtype='fl"):
        train(config, tmp_path / "offload", FSDP2 | {"parallel.cpu_offload": True, "model.llm.dtype": "bfloat16"})
    with pytest.raises(ValueError, match="'DDP': all trained weights are torch.bfloat16.*use type='FSDP2', or dtype="):
        train(config, tmp_path / "llm", DDP | {"model.llm.dtype": "bfloat16", "stages.pretrain.train": ["llm"]})
    for kind in (DDP, FSDP2):
        with pytest.raises(ValueError, match="trained weights are torch.float16.*dtype='float32' or dtype='bfloat16'"):
            train(config, tmp_path / kind["parallel.type"], kind | {"model.llm.dtype": "float16"})
