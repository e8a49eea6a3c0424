"""The example of one's own components keeps the library's contracts."""

import json
from pathlib import Path

import pytest
import torch
from run_helpers import TINY
from safetensors.torch import load_file
from torch import nn

from asvr.engine.run import run
from asvr.models.losses import CodeCrossEntropy
from asvr.recipe.config import load_config
from examples.my_components import AdditiveHead, ColorPatches, FocalCodeLoss, NormProjector

P, D, C, H, V = 5, 3, 4, 6, 7


@pytest.fixture
def head() -> nn.Module:
    torch.manual_seed(0)
    return AdditiveHead(hidden_size=H, codebook_sizes=[V] * D, code_width=C, width=8)


def test_the_encoder_reads_patches_in_raster_order():
    encoder = ColorPatches(image_size=16, patch=8, cells=2)
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[0, 1, 8:, :8] = 1.0  # green, at the bottom left
    features = encoder(pixels)
    assert features.shape == (1, encoder.num_tokens, encoder.width) == (1, 4, 12)
    assert [token.sum().item() for token in features[0]] == [0, 0, 4, 0]
    assert NormProjector(in_width=12, out_width=H)(features).shape == (1, 4, H)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="must divide"):
        ColorPatches(image_size=60, patch=8)


def test_a_depth_sees_the_codes_before_it_and_not_its_own(head):
    hidden, vectors = torch.randn(P, H), torch.randn(P, D, C)
    changed = vectors.clone()
    changed[:, 1] += 1
    before, after = head(hidden, vectors), head(hidden, changed)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.allclose(before[:, 2], after[:, 2])


def test_the_focal_loss_without_focus_is_cross_entropy(head):
    states, codes = head(torch.randn(P, H), torch.randn(P, D, C)), torch.randint(V, (P, D))
    loss, correct = FocalCodeLoss(gamma=0)(states, head.classifiers, codes)
    expected, expected_correct = CodeCrossEntropy()(states, head.classifiers, codes)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(correct, expected_correct)
    assert FocalCodeLoss(gamma=2)(states, head.classifiers, codes)[0] < loss


def test_the_example_config_trains_with_every_own_component(quick, tmp_path, monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    called = set()
    for part in (ColorPatches, NormProjector, AdditiveHead, FocalCodeLoss):
        monkeypatch.setattr(part, "forward", _noting(part.forward, part.__name__, called))
    few = {"text_tokenizer.corpus.max_pictures": 8, "data.train.max_pictures": 8, "schedule.steps": 3}
    options = few | {"model.reconstruction.0.tokenizer.codebook_size": 8, "runtime.log_interval": 1}
    run(load_config(root / "configs/examples/custom_components.py", options), tmp_path)
    assert called == {"ColorPatches", "NormProjector", "AdditiveHead", "FocalCodeLoss"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["loss_semantic"] > 0
    weights = load_file(tmp_path / "train" / "checkpoints" / "step_00000003" / "model.safetensors")
    assert {"projector.norm.weight", "heads.semantic.hidden_input.weight"} <= weights.keys()


def _noting(forward, name: str, called: set):
    def noted(self, *args, **kwargs):
        called.add(name)
        return forward(self, *args, **kwargs)

    return noted


def test_the_lora_guide_trains_adapters_and_then_what_patterns_choose(quick, tmp_path):
    pytest.importorskip("peft")
    root = Path(__file__).parents[1]
    few = {key: value for key, value in TINY.items() if not key.startswith("stages.")}
    few |= {"model.llm.arch.num_hidden_layers": 2, "runtime.log_interval": 1}
    for stage in ("learn", "adapt", "polish"):
        few |= {f"stages.{stage}.schedule.steps": 2, f"stages.{stage}.evaluation.limit": 3}
    run(load_config(root / "configs/examples/lora.py", few), tmp_path)
    assert len((root / "configs/examples/lora.py").read_text().splitlines()) <= 60
    learned, adapted, polished = (
        load_file(tmp_path / stage / "checkpoints" / "step_00000002" / "model.safetensors")
        for stage in ("learn", "adapt", "polish")
    )
    layer = "llm.model.model.layers.0.mlp.up_proj"
    assert torch.equal(adapted[f"{layer}.base_layer.weight"], learned[f"{layer}.weight"])
    product = adapted[f"{layer}.lora_B.default.weight"] @ adapted[f"{layer}.lora_A.default.weight"]
    torch.testing.assert_close(polished[f"{layer}.weight"], learned[f"{layer}.weight"] + product * 16 / 8)
    changed = {key for key in polished if key in adapted and not torch.equal(polished[key], adapted[key])}
    assert {key.split(".")[0] for key in changed} == {"projector", "llm"} and all(
        "norm" in key or ".layers.1.mlp." in key for key in changed if key.startswith("llm.")
    )
