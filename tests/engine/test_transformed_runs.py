"""Runs with adapters, and with weights that patterns choose: what a checkpoint holds, and what later stages read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from parallel_helpers import launch, losses, make_config, train
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

import asvr
from asvr.engine.stages import finished_model
from asvr.interchange.export import export_llava
from asvr.models.transforms import merge_transforms
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe
from asvr.registry import MODEL_TRANSFORMS

LORA = dict(type="Lora", layers=["llm.*.self_attn", "llm.*.lm_head"], r=2, alpha=16, dropout=0.1)
ALL = ["projector", "heads", "llm"]
OPTIONS = {
    "stages.pretrain.optim": dict(lr=2e-3),
    "stages.finetune.model_transforms": [LORA],
    "stages.finetune.optim": dict(lr=2e-2),
    # Behind the adapters: with them as they are, and merged.
    "stages.same": dict(train=["projector", "llm"], model_transforms=[LORA], schedule=dict(steps=2), evaluation=None),
    "stages.merged": dict(train=["projector"], init="finetune", schedule=dict(steps=2), evaluation=None),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("run") / "lora"
    train(config, work_dir, OPTIONS)
    return work_dir


def last(work_dir: Path, stage: str) -> Path:
    return sorted((work_dir / stage / "checkpoints").glob("step_*"))[-1]


def held(work_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(last(work_dir, stage) / "model.safetensors")


def base(config: Path) -> dict[str, torch.Tensor]:
    state = AutoModelForCausalLM.from_pretrained(config.parent / "llm").state_dict()
    return {f"llm.model.{key}": value for key, value in state.items()}


def model_of(work_dir: Path, stage: str):
    """As it trained, its adapters beside their layers."""
    tokenizer = asvr.load(work_dir, stage=stage).text_tokenizer
    model, _ = finished_model(Recipe(load_config(work_dir / "config.py")), stage, tokenizer, work_dir)
    return model.eval()


def interrupted(work_dir: Path, copy: Path, stage: str, step: int) -> Path:
    """A run that was killed behind a checkpoint of ``step``."""
    shutil.copytree(work_dir, copy)
    (copy / stage / "done.json").unlink()
    for folder in (copy / stage / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    return copy


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(3, 23).view(2, 10)
    return model.llm.lm_head(model.llm.hidden(model.llm.embed(ids))[-1])


def test_a_checkpoint_holds_the_adapters_and_not_their_base(done, config):
    weights = held(done, "finetune")
    llm = {key for key in weights if key.startswith("llm.")}
    assert len(llm) == 2 * (2 * 4 + 1) and all(".lora_" in key for key in llm)
    assert all(weights[key].abs().max() > 0 for key in llm if ".lora_B." in key)  # they were trained
    assert {key.split(".")[0] for key in weights} == {"llm", "projector", "heads"}
    model = model_of(done, "finetune")
    own = {f"llm.{k.replace('.base_layer', '')}": v for k, v in model.llm.state_dict().items() if ".lora_" not in k}
    assert all(torch.equal(own[key], value) for key, value in base(config).items())


def test_a_run_with_adapters_goes_on_as_if_nothing_had_happened(done, config, tmp_path):
    copy = interrupted(done, tmp_path / "copy", "finetune", 2)
    train(config, copy, OPTIONS, only="finetune")
    expected, weights = held(done, "finetune"), held(copy, "finetune")
    assert expected.keys() == weights.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)


def test_a_later_stage_goes_on_with_the_adapters_or_with_what_they_made(done, config):
    assert {k for k in held(done, "same") if k.startswith("llm.")} == {
        k for k in held(done, "finetune") if k.startswith("llm.")
    }
    before, weights = model_of(done, "finetune"), held(done, "merged")
    expected = logits(before)
    merge_transforms(before)
    torch.testing.assert_close(logits(before), expected, rtol=0, atol=1e-5)
    merged = {f"llm.{key}": value for key, value in before.llm.state_dict().items()}
    assert merged.keys() == base(config).keys() == {key for key in weights if key.startswith("llm.")}
    assert all(torch.equal(weights[key], merged[key]) for key in merged)
    assert not torch.equal(weights["llm.model.lm_head.weight"], base(config)["llm.model.lm_head.weight"])


def test_a_stage_on_merged_weights_resumes(done, config, tmp_path):
    (folder,) = (done / "merged" / "checkpoints").glob("step_*")
    copy = shutil.copytree(done, tmp_path / "copy")
    (copy / "merged" / "done.json").unlink()
    shutil.rmtree(copy / "merged" / "checkpoints" / folder.name)
    train(config, copy, OPTIONS, only="merged")
    assert all(torch.equal(value, held(done, "merged")[key]) for key, value in held(copy, "merged").items())


def test_a_loaded_a_saved_and_an_exported_model_are_merged(done, tmp_path):
    expected, found = logits(model_of(done, "finetune")), asvr.load(done, stage="finetune")
    assert not found.model.transforms and not any("lora" in key for key in found.model.state_dict())
    torch.testing.assert_close(logits(found.model), expected, rtol=0, atol=1e-5)
    saved = asvr.load(found.save_pretrained(tmp_path / "saved"))
    assert torch.equal(logits(saved.model), logits(found.model))
    exported = LlavaForConditionalGeneration.from_pretrained(export_llava(found, tmp_path / "llava")).eval()
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        own = exported(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    image = Image.new("RGB", (9, 9), "red")
    assert found.chat(image, "what is it?", max_new_tokens=3) == saved.chat(image, "what is it?", max_new_tokens=3)


def test_another_base_is_refused(done, config, tmp_path):
    copy = interrupted(done, tmp_path / "copy", "finetune", 2)
    other = AutoModelForCausalLM.from_pretrained(config.parent / "llm")
    other.lm_head.weight.data += 1
    other.save_pretrained(tmp_path / "llm")
    with pytest.raises(ValueError, match="was made with other frozen weights of llm"):
        train(config, copy, OPTIONS | {"model.llm.name": str(tmp_path / "llm")}, only="finetune")


def test_a_model_folder_gets_adapters(done, config, tmp_path):
    folder = asvr.load(done, stage="merged").save_pretrained(tmp_path / "folder")
    stage = dict(train=ALL, init=str(folder), model_transforms=[LORA], schedule=dict(steps=4), evaluation=None)
    options = {"stages": dict(_delete_=True, tune=stage), "data.cache": False}
    entry = load_config(config).model.reconstruction[0].to_dict()
    del entry["fit"]
    entry["tokenizer"]["name"] = str(next((done / "tokenizers").glob("semantic-*")))
    options["model.reconstruction"] = [entry]
    work_dir = tmp_path / "run"
    train(config, work_dir, options)
    assert all(".lora_" in key for key in held(work_dir, "tune") if key.startswith("llm."))
    copy = interrupted(work_dir, tmp_path / "copy", "tune", 2)
    train(config, copy, options)
    assert all(torch.equal(value, held(work_dir, "tune")[key]) for key, value in held(copy, "tune").items())


# Patterns ------------------------------------------------------------------------------------------------------

PARTS = {"stages.finetune.train": ["projector", "llm.*.layers.1.mlp", "llm.*norm*"]}


@pytest.fixture(scope="module")
def part(config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("run") / "part"
    later = dict(train=["heads"], schedule=dict(steps=2), evaluation=None)
    train(config, work_dir, PARTS | {"stages.later": later, "stages.all": dict(later, train=ALL)})
    return work_dir


def test_weights_that_a_pattern_chose_are_trained_and_saved_alone(part, config):
    weights, before = held(part, "finetune"), base(config)
    own = {key: value for key, value in weights.items() if key.startswith("llm.")}
    assert all("norm" in key or ".layers.1.mlp." in key for key in own) and len(own) == 3 + 5
    assert all(not torch.equal(value, before[key]) for key, value in own.items())
    assert {key.split(".")[0] for key in weights} == {"projector", "llm", "heads"}
    model = asvr.load(part, stage="finetune").model
    assert all(torch.equal(own.get(f"llm.{k}", before[f"llm.{k}"]), v) for k, v in model.llm.state_dict().items())


def test_a_partly_trained_model_resumes(part, config, tmp_path):
    copy = interrupted(part, tmp_path / "copy", "finetune", 2)
    train(config, copy, PARTS, only="finetune")
    assert all(torch.equal(value, held(part, "finetune")[key]) for key, value in held(copy, "finetune").items())


def test_later_stages_keep_what_a_pattern_chose(part):
    llm = {key: value for key, value in held(part, "finetune").items() if key.startswith("llm.")}
    later = held(part, "later")
    assert {key for key in later if key.startswith("llm.")} == llm.keys()
    assert all(torch.equal(later[key], value) for key, value in llm.items())
    assert len([key for key in held(part, "all") if key.startswith("llm.")]) == 2 * 9 + 3  # trained whole: saved whole


# Several processes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(config, tmp_path_factory) -> Path:
    """Runs in two processes, and with the same options in one."""
    folder, plain = tmp_path_factory.mktemp("two"), dict(LORA, dropout=0.0)  # what is split otherwise draws otherwise
    adapters = {f"stages.{stage}.model_transforms": [plain] for stage in ("finetune", "same")}
    quiet = {"stages.finetune.evaluation": None}
    options = dict(ddp=OPTIONS | adapters | quiet, fsdp=OPTIONS | adapters | quiet, part=PARTS | quiet)
    kinds = dict(ddp="DDP", fsdp="FSDP2", part="FSDP2")
    runs = [
        dict(
            config=str(config),
            work_dir=str(folder / name),
            options=options[name] | {"parallel": dict(type=kinds[name])},
        )
        for name in options
    ]
    launch(folder, runs, 2)
    train(config, folder / "one", options["ddp"])
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp", "part"])
def test_processes_share_what_is_trained_in_part(two, part, name):
    alone = part if name == "part" else two / "one"
    own = losses(two / name)
    expected = losses(alone)[: len(own)]
    for mine, other in zip(own, expected, strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            assert mine[key] == (value if key == "stage" else pytest.approx(value, rel=2e-4, abs=1e-5)), (mine, other)
    files = [last(run, "finetune") / "checkpoint.json" for run in (two / name, alone)]
    llms = [json.loads(file.read_text())["frozen"]["llm"] for file in files]
    assert llms[0] == llms[1] and llms[0]["saved"]


def test_one_process_reads_adapters_that_two_wrote(two):
    torch.testing.assert_close(
        logits(asvr.load(two / "fsdp", stage="finetune").model),
        logits(asvr.load(two / "one", stage="finetune").model),
        rtol=1e-3,
        atol=1e-3,
    )


# A user's own transform ----------------------------------------------------------------------------------------


@MODEL_TRANSFORMS.register_module()
def freeze_norms(model):
    for name, parameter in model.llm.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(False)


def test_a_transform_of_ones_own_narrows_what_is_trained(config, tmp_path):
    options = {"stages.finetune.model_transforms": [dict(type="freeze_norms")], "stages.finetune.evaluation": None}
    train(config, tmp_path / "run", options)
    llm = {key for key in held(tmp_path / "run", "finetune") if key.startswith("llm.")}
    assert llm == {key for key in base(config) if "norm" not in key}
    with pytest.raises(ValueError, match=r"freeze_norms has no merge\(model\)"):
        asvr.load(tmp_path / "run").save_pretrained(tmp_path / "saved")
    later = options | {"stages.later": dict(train=["heads"], evaluation=None)}
    with pytest.raises(ValueError, match=r"freeze_norms has no merge\(model\), which a later stage without it"):
        train(config, tmp_path / "run", later)
