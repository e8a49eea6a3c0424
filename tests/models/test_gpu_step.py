"""A training step on CUDA: every kernel has the losses and gradients of padded rows, and the host never waits."""

import pytest
import torch
from run_helpers import SIGLIP
from vlm_helpers import DEPTH_HEAD, LLAMA, SEMANTIC, build, collate, recorder, rows

from asvr.base import compat
from asvr.engine.optim import build_optim_wrapper
from asvr.models.attention import problem_of, use_attention
from asvr.models.checkpointing import settings
from asvr.models.compiling import compile_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
# Heads of 16: kernels of CUDA take multiples of 8.
LARGER = dict(LLAMA, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
TOWER = dict(type="HFVisionEncoder", arch=dict(SIGLIP, hidden_size=32, intermediate_size=48))
NATIVE = dict(
    type="NaFlexEncoder",
    max_num_patches=6,
    arch=dict(
        model_type="siglip2_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=16,
        patch_size=4,
    ),
)
TARGET = dict(SEMANTIC, head=dict(DEPTH_HEAD, width=32, layers=2))
OPTIM = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="bf16")


def model(kernel: str, precision: torch.dtype | None, encoder: dict = TOWER):
    found = problem_of(kernel, CUDA, precision or torch.float32)
    if found is not None and found.startswith(("not installed", "needs bf16", "needs a GPU of capability")):
        pytest.skip(f"{kernel}: {found}")
    own = build(reconstruction=[TARGET], encoder=encoder, llm=LARGER, fit=encoder is TOWER)
    if encoder is NATIVE:
        own.targets[0].tokenizer.fit([torch.randn(64, 32)], progress=False)
    own.to(CUDA)
    use_attention(own, kernel, precision)
    return own


def step(own, batch, precision: str) -> list:
    """Losses and gradients."""
    wrapper = recorder(own, precision=precision)
    logs = own.train_step([batch], wrapper)
    return [logs["text"], logs["semantic"], *wrapper.optimizer.gradients]


def close(own: list, other: list, limit: float) -> None:
    for one, two in zip(own, other, strict=True):
        assert (one - two).norm() <= limit * two.norm() + 1e-6


@pytest.mark.parametrize("kernel", ["sdpa", "xformers", "varlen", "varlen_fa3", "varlen_fa4"])
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-3), ("bf16", 5e-2)])
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(kernel, precision, limit):
    half = torch.bfloat16 if precision == "bf16" else None
    own, reference = model(kernel, half), model("sdpa", None)
    found = step(own, collate(own, rows(), packed=True), precision)
    close(found, step(reference, collate(reference, rows()), "float32"), limit)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_compiled_parts_compute_the_same(mode):
    own, compiled = model("varlen", torch.bfloat16), model("varlen", torch.bfloat16)
    compiled.heads["semantic"].activation_checkpointing = mode
    if mode == "full":
        compiled.llm.activation_checkpointing = mode
        compat.enable_activation_checkpointing(compiled.llm.model, settings(mode))
    compile_blocks(compiled)
    for count in (3, 6, 4):
        batch = collate(own, rows()[:count], packed=True)
        close(step(compiled, batch, "bf16"), step(own, batch, "bf16"), 5e-2)


@pytest.mark.parametrize("kernel", ["sdpa", "xformers", "varlen", "varlen_fa3", "varlen_fa4"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("encoder", [TOWER, NATIVE], ids=["fixed", "native"])
def test_the_host_waits_for_nothing_in_a_step(kernel, packed, encoder):
    own = model(kernel, torch.bfloat16, encoder)
    wrapper = build_optim_wrapper(own, OPTIM)
    # The first step makes the optimiser's state; the second has other lengths, which kernels may prepare for.
    first, second = (collate(own, items, packed=packed).pin_memory() for items in (rows(), rows()[1:]))
    own.train_step([first], wrapper)
    torch.cuda.set_sync_debug_mode("error")
    try:
        logs = own.train_step([second, first], wrapper)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.isfinite().all() for value in logs.values())
