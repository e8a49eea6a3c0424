"""The example of one's own components keeps the library's contracts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
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


SMALL = {
    "text_tokenizer.corpus.max_pictures": 8,
    "data.train.max_pictures": 8,
    "model.reconstruction.0.tokenizer.codebook_size": 8,
    "data.micro_batch": 8,
    "data.global_batch": 8,
    "schedule.steps": 6,
    "evaluation.dataset.max_pictures": 3,
    "evaluation.limit": 4,
    "runtime.log_interval": 1,
    "runtime.checkpoint_interval": 4,
}


def test_muon_trains_and_its_averages_are_evaluated(quick, tmp_path):
    root = Path(__file__).parents[1]
    results = run(load_config(root / "configs/examples/muon.py", SMALL), tmp_path)
    assert results.keys() == {"train", "train_ema"}
    state = torch.load(tmp_path / "train/checkpoints/step_00000006/state.pt", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert {"ns_steps" in group for group in groups} == {True, False}
    peak = {group["initial_lr"] for group in groups if "ns_steps" in group}
    assert peak == {4e-3, 2e-3 * 0.9, 2e-3 * 0.9**2}  # heads, the last block, the first
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = rates[0]  # of 6 steps one warms up and two fall
    assert rates == pytest.approx([first, *[2 * first] * 3, 2 * first, first])


def test_a_hook_of_ones_own_logs_and_goes_on(quick, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    options = SMALL | {"validation.dataset.max_pictures": 3, "validation.interval": 3, "validation.limit": 4}
    file = root / "configs/examples/logging_hook.py"
    run(load_config(file, options), tmp_path / "run")
    csv = tmp_path / "run/train/mmengine/losses.csv"
    whole = csv.read_text()
    assert [line.split(",")[0] for line in whole.splitlines()] == ["step", "1", "2", "3", "4", "5", "6"]
    assert list((tmp_path / "run/train/vis_data").glob("events.*"))
    lowest = torch.load(tmp_path / "run/train/checkpoints/step_00000006/state.pt", weights_only=True)["hooks"][
        "CsvHook"
    ]
    (tmp_path / "run/train/done.json").unlink()  # as if it had been killed behind step 4
    shutil.rmtree(tmp_path / "run/train/checkpoints/step_00000006")
    run(load_config(file, options), tmp_path / "run")
    assert csv.read_text() == whole
    again = torch.load(tmp_path / "run/train/checkpoints/step_00000006/state.pt", weights_only=True)["hooks"]["CsvHook"]
    assert again == lowest


@pytest.mark.parametrize(
    "file", ["examples/logging_hook.py", "configs/examples/logging_hook.py", "configs/examples/muon.py"]
)
def test_a_guide_is_short(file):
    assert len((Path(__file__).parents[1] / file).read_text().splitlines()) <= 60


def _noting(forward, name: str, called: set):
    def noted(self, *args, **kwargs):
        called.add(name)
        return forward(self, *args, **kwargs)

    return noted
