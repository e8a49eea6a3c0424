"""Every config in configs/ loads, survives a round trip, is right, and builds without weights."""

from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from torch import nn

from asvr.flops.memory import GIB, MACHINES, Machine, plan_memory
from asvr.recipe import preflight
from asvr.recipe.config import dump_config, load_config
from asvr.recipe.entries import TARGET
from asvr.recipe.recipe import Recipe, Stage
from asvr.recipe.schema import SECTIONS
from asvr.recipe.validate import check_config
from asvr.registry import (
    DATASETS,
    ENCODERS,
    HEADS,
    LAYOUTS,
    LLMS,
    LOSSES,
    PROJECTORS,
    TEMPLATES,
    TEXT_TOKENIZERS,
    VISUAL_TOKENIZERS,
)

COMPONENTS = (
    DATASETS,
    ENCODERS,
    HEADS,
    LAYOUTS,
    LLMS,
    LOSSES,
    PROJECTORS,
    TEMPLATES,
    TEXT_TOKENIZERS,
    VISUAL_TOKENIZERS,
)
ROOT = Path(__file__).parents[1] / "configs"
FOLDERS = (ROOT, ROOT / "examples", ROOT / "paper", ROOT / "targets" / "vicuna7b", ROOT / "targets" / "scenes")
RECIPES = sorted(str(p.relative_to(ROOT)) for folder in FOLDERS for p in folder.glob("[!_]*.py"))
BUILT: dict[str, nn.Module] = {}


def build_meta(stage: Stage) -> nn.Module:
    """Once for all configs that have the same model."""
    key = repr((stage.text_tokenizer, stage.model, stage.train, stage.model_transforms))
    if key not in BUILT:
        BUILT[key] = preflight.build_meta(stage)
    return BUILT[key]


def load(name: str) -> Config:
    return load_config(ROOT / name)


@cache
def meta(name: str, stage: str) -> nn.Module:
    cfg = load(name)
    if "LatentEncoder" in cfg.pretty_text:
        pytest.importorskip("diffusers", reason="LatentEncoder needs it: pip install -e '.[diffusion]'")
    return build_meta(Recipe(cfg).stages[stage])


def parameters(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@pytest.fixture(autouse=True)
def no_local_weights(tmp_path, monkeypatch):
    """The architectures that the configs state, whatever folders this machine has; components of examples/."""
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    monkeypatch.setattr("asvr.base.hub.resolve", lambda name: None)
    monkeypatch.chdir(ROOT.parent)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_is_right_and_survives_a_round_trip(name, tmp_path):
    cfg = load(name)
    check_config(cfg)
    dump_config(cfg, tmp_path / "config.py")
    again = load_config(tmp_path / "config.py")
    assert again.to_dict() == cfg.to_dict() and list(again.stages) == list(cfg.stages)
    command = f"asvr train {name.removesuffix('.py')}"
    assert command in (ROOT / name).read_text(), "the header says how to run it"


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_builds_without_weights(name):
    last = Recipe(load(name)).last
    model = meta(name, last.name)
    assert all(p.is_meta for p in model.parameters())
    assert [target.shift for target in model.targets] == [entry.get("shift", 0) for entry in last.model.reconstruction]


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "tokenizers").glob("siglip*.py")))
def test_a_tokenizer_is_fitted_on_the_images_of_the_recipes(name):
    tokenizer = load(f"tokenizers/{name}")
    assert tokenizer.data.root == load("asvr_vicuna7b.py").data.train.image_folder
    command = f"# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/{name.removesuffix('.py')}\n"
    assert command in (ROOT / "tokenizers" / name).read_text(), "the header says how to fit it"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("asvr_vicuna7b.py", 6_738_415_616),
        ("asvr_vicuna13b.py", 13_015_864_320),
        ("asvr_mistral7b.py", 7_241_732_096),
        ("asvr_qwen2_5_7b.py", 7_615_616_512),
    ],
)
def test_llms_have_their_published_sizes(name, size):
    assert parameters(meta(name, "finetune").llm) == size


def test_the_released_head_has_the_released_size():
    head = meta("asvr_vicuna7b_released.py", "finetune").heads["semantic"]
    assert parameters(head) - parameters(head.input) == 723_970_048


def is_of_the_paper(name: str) -> bool:
    """Its hyper-parameters, heads in both stages, and nothing of the LLM left out."""
    at_scale = name.startswith("paper/") or "7b" in name or "13b" in name
    adapted = "lora" in name or name == "asvr_vicuna7b_24gb.py"
    return at_scale and not name.startswith("examples/") and not adapted and name != "paper/finetune_only.py"


@pytest.mark.parametrize("name", [name for name in RECIPES if is_of_the_paper(name)])
def test_the_papers_recipe(name):
    """27 x 27 tokens of SigLIP; projector and heads first, then the LLM too, with the released hyper-parameters."""
    cfg = load(name)
    pretrain, finetune = (Recipe(cfg).stages[stage] for stage in ("pretrain", "finetune"))
    assert (pretrain.optim.lr, pretrain.data.global_batch, pretrain.data.template) == (1e-3, 256, "plain")
    lr = 2e-4 if finetune.model_transforms else 2e-5  # LLaVA's own with LoRA and without
    assert (finetune.optim.lr, finetune.data.global_batch, finetune.data.image_aspect) == (lr, 128, "pad")
    model = meta(name, "pretrain")
    assert model.encoder.grid == (27, 27)
    trained = {part for part, module in model.components().items() if parameters(module, trained=True)}
    assert trained == ({"projector", "heads"} if len(model.heads) else {"projector"})
    llm = meta(name, "finetune").llm
    if finetune.model_transforms:
        assert 0 < parameters(llm, trained=True) == parameters(llm) - parameters(model.llm)  # the adapters alone
    else:
        assert parameters(llm, trained=True) == parameters(model.llm)


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("asvr_vicuna7b_24gb.py", Machine(1, "24 GB", 23.5 * GIB)),
        ("asvr_vicuna7b_80gb.py", MACHINES[0]),
    ],
)
def test_a_recipe_for_a_card_leaves_a_tenth_of_it_free(name, machine):
    last = Recipe(load(name)).last
    if "torchao" in last.optim.type:
        pytest.importorskip("torchao.optim", reason="torchao is not installed")
    assert plan_memory(last, preflight.build_meta(last)).per_card(machine) < 0.9 * machine.card_bytes


@pytest.mark.parametrize("name", [name for name in RECIPES if "lora" in name and "/" not in name])
def test_a_recipe_with_adapters_has_llavas_settings(name):
    pretrain, finetune = Recipe(load(name)).stages.values()
    assert pretrain.optim == Recipe(load("asvr_vicuna7b.py")).first.optim and not pretrain.model_transforms
    (lora,) = finetune.model_transforms
    assert (lora.r, lora.alpha, lora.dropout) == (128, 256, 0.05)
    assert (finetune.optim.lr, finetune.data.global_batch) == (2e-4, 128)
    assert {part: scale * finetune.optim.lr for part, scale in finetune.optim.lr_scale.items()} == (
        dict(projector=2e-5) if name.startswith("llava") else dict(projector=2e-5, heads=2e-5)
    )
    assert finetune.model.llm.dtype == "bfloat16"


def test_viral_has_the_adapters_of_its_released_script():
    """Rank and alpha of scripts/v1_5/finetune_lora.sh, the dropout that its train.py has by default."""
    (lora,) = Recipe(load("targets/vicuna7b/viral.py")).last.model_transforms
    assert (lora.r, lora.alpha, lora.dropout) == (128, 256, 0.05)


def test_targets_of_the_ablations():
    targets = {
        name: [(t.name, t.tokenizer.depth, t.shift, t.shares_encoder) for t in meta(name, "finetune").targets]
        for name in RECIPES
        if "vicuna7b" in name and "/" not in name and "lora" not in name
    }
    assert targets == {
        "llava_vicuna7b.py": [],
        "asvr_vicuna7b.py": [("semantic", 8, 1, True)],
        "asvr_vicuna7b_released.py": [("semantic", 8, 0, True)],
        "asvr_vicuna7b_appearance.py": [("appearance", 8, 1, False)],
        "asvr_vicuna7b_pixel.py": [("pixel", 1, 1, False)],
        "asvr_vicuna7b_dual.py": [("semantic", 8, 1, True), ("appearance", 8, 1, False)],
        **{f"asvr_vicuna7b_{card}.py": [("semantic", 8, 1, True)] for card in ("24gb", "80gb", "8x80gb", "141gb")},
    }


def test_the_readme_names_every_recipe():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in RECIPES if "/" not in name and name not in text] == []


def test_the_pages_name_every_field_and_component():
    for registry in COMPONENTS:
        registry.import_from_location()
    text = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT.parent / "docs").rglob("*.md")))
    fields = {name for fields in (TARGET, *SECTIONS.values()) for name in fields}
    components = {name for registry in COMPONENTS for name, cls in registry.module_dict.items() if is_ours(cls)}
    assert {"MLPProjector", "EasyVQA", "vicuna_v1"} <= components
    assert [name for name in sorted(fields | components) if name not in text] == []


def is_ours(cls: type) -> bool:
    return cls.__module__.startswith("asvr.")


def test_tiles_take_as_many_tokens_as_the_pages_say():
    largest = meta("examples/tiles_vicuna7b.py", "finetune").layout.largest()
    assert (largest.num_tokens, largest.num_crops) == (3699, 5)
    assert "3,699 tokens" in (ROOT / "README.md").read_text()


def test_adapters_train_320_million_weights_in_place_of_the_whole_llm():
    for name in ("asvr_vicuna7b_lora.py", "asvr_vicuna7b_qlora.py"):
        model = meta(name, "finetune")
        assert parameters(model.llm, trained=True) == 319_815_680
        assert {part for part, own in model.components().items() if parameters(own, trained=True)} == {
            *("projector", "llm", "heads")
        }
