"""Compiled blocks compute what they computed, and lengths that change have nothing compiled again."""

import pytest
import torch
from torch._dynamo.utils import counters
from vlm_helpers import LLAMA

from asvr.data.batch import Segments
from asvr.models.compiling import compile_blocks
from asvr.models.llms import HFCausalLM

STEPS = ([6, 4, 5], [3, 9], [7, 2, 2, 6], [8, 3])


def llm(mode: str) -> HFCausalLM:
    torch.manual_seed(0)
    model = HFCausalLM(arch=LLAMA, vocab_size=32, activation_checkpointing=mode)
    model.model.set_attn_implementation("asvr_sdpa")
    return model.train()


def gradients(model: HFCausalLM, lengths: list[int]) -> list:
    embeds = torch.randn(1, sum(lengths), 16, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    hidden = model.hidden(embeds, {-1, 1}, segments=Segments.of(lengths))
    (hidden[-1].square().sum() + hidden[1].square().sum()).backward()
    found = [hidden[-1].detach(), hidden[1].detach()]
    return found + [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", ["none", "full"])
def test_compiled_blocks_compute_the_same(mode):
    plain, compiled = llm(mode), llm(mode)
    torch._dynamo.reset()
    assert compile_blocks(compiled, backend="aot_eager") == 2 * 3  # two norms and an MLP in each of two blocks
    graphs = []
    for lengths in STEPS:
        for own, other in zip(gradients(compiled, lengths), gradients(plain, lengths), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[1:] == graphs[1:2] * 3


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ValueError, match="'selective' chooses among single operations"):
        compile_blocks(llm("selective"))
    with pytest.raises(ValueError, match="Linear tells no `blocks`"):
        compile_blocks(torch.nn.Linear(2, 2))
