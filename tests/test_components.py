"""docs/components.md: every registry has its contract there, and the examples run, one by one and together."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import asvr.registry
from asvr.base.log_once import forget
from asvr.engine.run import run
from asvr.recipe.components import ASKED_FOR, GIVEN, INJECTED
from asvr.registry import FullRegistry

PAGE = (Path(__file__).parents[1] / "docs/components.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
REGISTRIES = {name: value for name, value in vars(asvr.registry).items() if isinstance(value, FullRegistry)}
OF_REGISTRY = {name: text for title, text in SECTIONS for name in re.findall(r"`([A-Z_]+)`", title)}
EXAMPLES = {title: re.findall(r"```python\n(.*?)```", text, re.S) for title, text in SECTIONS}


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """What examples register is taken out again."""
    before = {name: set(registry.module_dict) for name, registry in REGISTRIES.items()}
    yield
    for name, registry in REGISTRIES.items():
        for added in registry.module_dict.keys() - before[name]:
            registry.module_dict.pop(added)


def test_every_registry_has_a_section_and_a_line():
    assert OF_REGISTRY.keys() == REGISTRIES.keys()
    assert all(registry.contract for registry in REGISTRIES.values())


@pytest.mark.parametrize("name", [name for name, registry in REGISTRIES.items() if INJECTED.get(registry)])
def test_a_section_names_what_the_library_gives(name):
    given = INJECTED[REGISTRIES[name]]
    assert [argument for argument in given if f"`{argument}`" not in OF_REGISTRY[name]] == []
    asked = given & ASKED_FOR if REGISTRIES[name] in GIVEN else set()
    text = " ".join(OF_REGISTRY[name].split())
    said = {a for a in given if re.search(rf"constructor takes `{a}`|`{a}` is given too if", text)}
    assert asked == said & ASKED_FOR


@pytest.mark.parametrize("title", [title for title, examples in EXAMPLES.items() if examples])
def test_an_example_runs(title, registered):
    torch.manual_seed(0)
    (example,) = EXAMPLES[title]
    before = {name: set(REGISTRIES[name].module_dict) for name in REGISTRIES}
    exec(example, dict(__name__="example"))  # noqa: S102
    added = [name for name in REGISTRIES if REGISTRIES[name].module_dict.keys() - before[name]]
    assert added == re.findall(r"`([A-Z_]+)`", title)


@pytest.fixture(scope="module")
def config(registered) -> Config:
    """All examples of parts of a run in one. It begins anew, for what an example above has registered."""
    for examples in EXAMPLES.values():
        for example in examples:
            exec(example.replace("register_module()", "register_module(force=True)"), dict(__name__="example"))  # noqa: S102
    colours = dict(type="Colours", names=["red", "green", "blue", "white"] * 8)
    return Config(
        dict(
            default_scope="asvr",
            text_tokenizer=dict(type="Characters"),
            model=dict(
                type="VLM",
                encoder=dict(type="PatchEncoder"),
                projector=dict(type="GatedProjector"),
                llm=dict(
                    type="FixedWords",
                    arch=dict(
                        model_type="llama",
                        hidden_size=16,
                        intermediate_size=32,
                        num_hidden_layers=1,
                        num_attention_heads=2,
                    ),
                ),
                reconstruction=[
                    dict(
                        name="brightness",
                        tokenizer=dict(type="Brightness"),
                        head=dict(type="HiddenLayerHead"),
                        loss=dict(type="PlainCrossEntropy"),
                        shift=1,
                    )
                ],
            ),
            data=dict(
                train=colours,
                template=dict(type="QuestionAnswer"),
                max_length=64,
                image_aspect="square",
                on_error="raise",
                micro_batch=4,
                global_batch=8,
                num_workers=0,
            ),
            optim=dict(type="AdamW", lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, clip_grad=1.0, precision="float32"),
            schedule=dict(steps=60, warmup_ratio=0.1),
            stages=dict(all=dict(train=["encoder", "projector", "heads", "llm"])),
            evaluation=dict(dataset=dict(type="Colours", names=["red", "blue"]), max_new_tokens=6, num_examples=0),
            runtime=dict(seed=0, device="cpu", log_interval=1, checkpoint_interval=100, keep_checkpoints=1),
        )
    )


def test_the_examples_train_together(config, tmp_path, quick, caplog):
    forget()
    results = run(config, tmp_path)["all"]
    assert "is not tried before the run" not in caplog.text + (tmp_path / "train.log").read_text(encoding="utf-8")
    assert results["total"] == 2 and results["losses"]["text"] < 2  # of 33 characters: 3.5 without learning
    assert results["losses"]["brightness"] < 1.5  # of 8 levels: 2.1
