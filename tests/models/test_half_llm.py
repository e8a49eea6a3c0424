"""An LLM with bfloat16 weights trains as one with float32 weights does under autocast."""

import pytest
import torch
from vlm_helpers import LLAMA, SEMANTIC, build, collate, rows

from asvr.engine.optim import build_optim_wrapper
from asvr.models.vlm import VLM

OPTIM = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="bf16")


def half_model(dtype: str) -> VLM:
    """A model whose LLM has bfloat16 weights, or float32 ones of the same values."""
    model = build(reconstruction=[SEMANTIC], llm=dict(LLAMA, hidden_size=32))
    model.llm.to(torch.bfloat16).to(getattr(torch, dtype))
    return model


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_losses_are_those_of_float32_weights_and_moments(moments, device):
    curves = []
    for dtype, kept in (("bfloat16", moments), ("float32", "float32")):
        model = half_model(dtype).to(device)
        wrapper = build_optim_wrapper(model, dict(OPTIM, moments=kept))
        window = [collate(model, rows()[:3], packed=False), collate(model, rows()[3:])]
        curves.append([float(model.train_step(window, wrapper)["text"]) for _ in range(20)])
    assert curves[0] == pytest.approx(curves[1], rel=2e-2) and curves[0][-1] < 0.9 * curves[0][0]
