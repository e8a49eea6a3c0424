"""Transformed blocks whose forward pass is computed again, or that are compiled, compute the same."""

import pytest
import torch
from vlm_helpers import LLAMA, SEMANTIC, build, collate, rows, step_gradients

from asvr.base import compat
from asvr.models.attention import use_attention
from asvr.models.checkpointing import settings
from asvr.models.compiling import compile_blocks
from asvr.models.transforms import transform_and_train

TRANSFORMS = {
    "QLora": ("peft", dict(r=2)),
    "Float8": ("torchao.float8", dict(emulate=True)),
}


def transformed(kind: str, mode: str):
    model = build(reconstruction=[dict(SEMANTIC, tap=1)], llm=dict(LLAMA, num_hidden_layers=2))
    torch.manual_seed(1)
    transform_and_train(model, [dict(type=kind, layers=["llm.*.layers"], **TRANSFORMS[kind][1])], ["projector", "llm"])
    for key, parameter in model.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(parameter, std=0.3)
    if mode in ("selective", "full"):
        model.llm.activation_checkpointing = mode
        compat.enable_activation_checkpointing(model.llm.model, settings(mode))
    use_attention(model, "sdpa", None)
    if mode == "compiled":
        torch._dynamo.reset()
        compile_blocks(model, backend="aot_eager")
    return model


@pytest.mark.parametrize("mode", ["selective", "full", "compiled"])
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_gradients_are_those_of_plain_blocks(kind, mode):
    pytest.importorskip(TRANSFORMS[kind][0], reason=f"{TRANSFORMS[kind][0]} is not installed")
    plain, model = transformed(kind, "none"), transformed(kind, mode)
    batch = collate(plain, rows()[:4], packed=False)
    (expected, logs), (found, own) = (step_gradients(one, [batch]) for one in (plain, model))
    assert found.keys() == expected.keys() and any(key.startswith("llm.") for key in found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own["text"], logs["text"])
