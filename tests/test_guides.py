"""The tutorials of docs/guides/own-*.md: the files that a reader would write train, and their mistakes are told."""

import json
import re
import sys
from pathlib import Path

import pytest

import asvr.registry
from asvr.base.log_once import forget
from asvr.engine.run import run
from asvr.recipe.config import load_config
from asvr.registry import FullRegistry
from examples.my_components import ColorPatches  # registers what the configs of the tutorials are based on

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs/guides"
REGISTRIES = [value for value in vars(asvr.registry).values() if isinstance(value, FullRegistry)]
FEW = {"schedule.steps": 3, "runtime.log_interval": 1, "data.micro_batch": 4, "data.global_batch": 4}
PICTURES = {"text_tokenizer.corpus.max_images": 8, "data.train.max_images": 8}
TUTORIALS = {
    "encoder": PICTURES,
    "target": PICTURES,
    "loss": PICTURES,
    "dataset": {},
    "optimizer": PICTURES,
    "metric": PICTURES | {"evaluation.dataset.max_images": 1},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a reader; what is registered and imported there is taken out again."""
    monkeypatch.chdir(tmp_path)
    before = [set(registry.module_dict) for registry in REGISTRIES]
    assert any(ColorPatches.__name__ in names for names in before)
    modules = set(sys.modules)
    yield tmp_path
    for registry, names in zip(REGISTRIES, before, strict=True):
        for added in registry.module_dict.keys() - names:
            registry.module_dict.pop(added)
    for name in sys.modules.keys() - modules:
        if name.startswith("my_"):
            del sys.modules[name]
    forget()


def files_of(guide: str) -> dict[str, str]:
    """The blocks whose first line names a file."""
    text = (GUIDES / f"own-{guide}.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.S))


@pytest.mark.parametrize("guide, few", TUTORIALS.items())
def test_a_tutorial_trains(guide, few, quick, folder):
    files = files_of(guide)
    assert {f"my_{guide}.py", f"my_{guide}_config.py"} <= files.keys()
    for name, code in files.items():
        (folder / name).write_text(code)
    if "make_data.py" in files:
        exec(files["make_data.py"], {})  # noqa: S102
    results = run(load_config(f"my_{guide}_config.py", FEW | few), folder / "work")
    lines = [json.loads(line) for line in (folder / "work/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    targets = {key for key in lines[0] if key.startswith("loss_")} - {"loss_text"}
    assert targets == {"encoder": set(), "target": {"loss_colours"}}.get(guide, {"loss_semantic"})
    if guide == "metric":
        assert -1 <= results["train"]["yes_bias"] <= 1 and "accuracy" in results["train"]
