"""What an optimiser is said to keep is what it keeps."""

import pytest
import torch
from engine_helpers import collate, item, tiny_model
from PIL import Image
from torch import nn

from asvr.engine.optim import build_optim_wrapper
from asvr.recipe.optimizer_state import state_bytes
from asvr.registry import OPTIMIZERS

COMMON = dict(lr=1e-3, weight_decay=0.1, clip_grad=1.0, precision="float32")


def kept(model: nn.Module, optim: dict) -> int:
    optim_wrapper = build_optim_wrapper(model, COMMON | optim)
    model.train_step([collate(model)([item(image=Image.new("RGB", (8, 8), "red"))])], optim_wrapper)
    state = optim_wrapper.optimizer.state.values()
    return sum(v.nbytes for own in state for v in own.values() if isinstance(v, torch.Tensor) and v.ndim)


@pytest.mark.parametrize(
    "optim, numbers",
    [
        (dict(), 2),
        (dict(type="Adam", amsgrad=True), 3),
        (dict(type="SGD"), 0),
        (dict(type="SGD", momentum=0.9), 1),
        (dict(type="Adagrad"), 1),
        (dict(type="RMSprop", centered=True), 2),
        (dict(type="NAdam"), 2),
    ],
)
def test_a_state_has_so_many_numbers_a_weight(optim, numbers):
    model = tiny_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert state_bytes(model, COMMON | optim) == numbers * 4 * trained == kept(model, optim)


@pytest.mark.parametrize("groups", [{}, dict(heads=dict(muon=False)), dict(llm=dict(lr_scale=0.5, muon=False))])
def test_muon_keeps_one_number_of_a_blocks_matrix_and_two_of_others(groups):
    model, optim = tiny_model(), dict(type="Muon", groups=groups)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 4 * trained < state_bytes(model, COMMON | optim) == kept(model, optim) < 8 * trained


def test_a_model_on_the_meta_device_is_enough():
    model = tiny_model()
    assert state_bytes(model.to("meta"), COMMON) == state_bytes(tiny_model(), COMMON)


def test_adafactor_keeps_rows_and_columns():
    model = tiny_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < state_bytes(model, COMMON | dict(type="TorchAdafactor")) < trained


@pytest.mark.parametrize(("name", "bits"), [("AdamW8bit", 8), ("AdamW4bit", 4), ("AdamWFp8", 8)])
def test_torchaos_states_are_of_few_bits_where_they_are_large(name, bits):
    pytest.importorskip("torchao.optim", reason="torchao is not installed")
    model = nn.Module()
    model.encoder = nn.Linear(512, 512)
    model.components = lambda: dict(encoder=model.encoder)
    found = state_bytes(model, COMMON | dict(type=f"torchao.optim.{name}"))
    assert found - 8 * 512 == pytest.approx(2 * 512 * 512 * bits / 8, rel=0.07)


@OPTIMIZERS.register_module()
class Particular(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("these are not my weights")


def test_an_optimiser_that_cannot_be_tried_is_told(caplog):
    model = tiny_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert state_bytes(model, COMMON | dict(type="Particular")) == 8 * trained
    assert "optim.type='Particular' is assumed to keep two moments (these are not my weights)" in caplog.text
