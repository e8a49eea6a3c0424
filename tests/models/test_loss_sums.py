"""A loss that is a mean is told before a run, and no sum is taken for one."""

import pytest
import torch
import torch.nn.functional as F
from engine_helpers import LLAMA
from run_helpers import ROOT, SIGLIP
from target_helpers import Features

from asvr.data.transforms import blank_pixels
from asvr.models.contracts import check_contracts
from asvr.models.loss_sums import is_mean
from asvr.models.targets import CodeTarget, SharedVocabularyTarget, Target
from asvr.models.vlm import VLM
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import load_recipe
from asvr.registry import TARGETS


class Mean(Features):
    def reduced(self, predicted_PE, features_PE):
        return F.mse_loss(predicted_PE, features_PE)


class MeanWidth(Features):
    def reduced(self, predicted_PE, features_PE):
        return F.mse_loss(predicted_PE, features_PE, reduction="none").mean(-1).sum()


class Noisy(Features):
    def reduced(self, predicted_PE, features_PE):
        return (predicted_PE + torch.randn_like(predicted_PE) - features_PE).square().mean()


class Contrastive(Features):
    def reduced(self, predicted_PE, features_PE):
        return F.cross_entropy(predicted_PE @ features_PE.T, torch.arange(len(features_PE)), reduction="sum")


class Zero(Features):
    def reduced(self, predicted_PE, features_PE):
        return 0 * predicted_PE.sum()


def model_with(kind: type[Target], monkeypatch) -> VLM:
    monkeypatch.setitem(TARGETS.module_dict, "Own", kind)
    with torch.device("meta"):
        return VLM(
            encoder=dict(type="HFVisionEncoder", arch=SIGLIP),
            projector=dict(type="MLPProjector"),
            llm=dict(type="HFCausalLM", arch=LLAMA),
            reconstruction=[dict(name="own", type="Own", shift=1)],
            vocab_size=32,
            load_weights=False,
        )


def test_a_mean_is_told(monkeypatch):
    with pytest.raises(ValueError, match=r"^model.reconstruction\[0\]: Mean .*as large for two samples as for one"):
        check_contracts(model_with(Mean, monkeypatch))


@pytest.mark.parametrize("kind", [Features, MeanWidth, Noisy, Contrastive, Zero])
def test_no_other_loss_is_refused(kind, monkeypatch):
    check_contracts(model_with(kind, monkeypatch))


def test_the_numbers_of_training_stay_as_they_are(monkeypatch):
    model = model_with(Features, monkeypatch)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_contracts(model)
    assert torch.equal(torch.rand(2), expected)
    assert all(parameter.is_meta for parameter in model.targets[0].head.parameters())


CONFIGS = sorted((ROOT / "configs/targets/scenes").glob("*.py"))
CONFIGS += [ROOT / f"configs/examples/{name}.py" for name in ("ema_target", "feature_target", "pooled_codes")]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_targets_of_the_library_and_its_examples_are_no_means(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    model = build_meta(load_recipe(file).last).eval()
    layout = model.layout.largest()
    for target in model.targets:
        with torch.device("meta"), torch.no_grad():
            pixels = {name: blank_pixels(view, layout.num_crops) for name, view in target.views().items()}
            features_INE = torch.zeros(layout.num_crops, model.encoder.num_tokens, model.encoder.width)
            truth = target.truth(pixels, features_INE)
            assert not is_mean(target, model, layout, truth)
        if isinstance(target, CodeTarget) and not isinstance(target, SharedVocabularyTarget):
            with monkeypatch.context() as patch, torch.device("meta"), torch.no_grad():
                patch.setattr(type(target), "loss", mean_of(type(target).loss))
                assert is_mean(target, model, layout, truth)


def mean_of(sum_of_losses):
    def loss(self, seen, truth):
        total, metrics = sum_of_losses(self, seen, truth)
        return total / len(self.places(seen)[0]), metrics

    return loss
