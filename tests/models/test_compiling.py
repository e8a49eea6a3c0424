"""Compiled parts compute what they computed, and lengths that change have nothing compiled again."""

import logging

import pytest
import torch
from torch._dynamo.utils import counters
from vlm_helpers import DEPTH_HEAD, LLAMA, SEMANTIC, build, collate, rows, step_gradients

from asvr.base import compat
from asvr.models.attention import use_attention
from asvr.models.checkpointing import settings
from asvr.models.compiling import compile_blocks, uncompiled


def model(mode: str):
    head = dict(DEPTH_HEAD, layers=2, activation_checkpointing=mode)
    own = build(reconstruction=[dict(SEMANTIC, head=head, tap=1)], llm=dict(LLAMA, num_hidden_layers=2))
    if mode != "none":
        own.llm.activation_checkpointing = mode
        compat.enable_activation_checkpointing(own.llm.model, settings(mode))
    use_attention(own, "sdpa", None)
    return own


def blocks_checkpoint(own) -> list[bool]:
    return [block.gradient_checkpointing for block in own.llm.blocks]


@pytest.mark.parametrize("mode", ["none", "full"])
def test_compiled_parts_compute_the_same(mode, caplog):
    torch._dynamo.reset()
    plain, compiled = model(mode), model(mode)
    with caplog.at_level(logging.INFO, logger="asvr"):
        compile_blocks(compiled, backend="aot_eager")
    parts = "2 LlamaAttention, 2 LlamaMLP, 4 LlamaRMSNorm" if mode == "full" else "2 LlamaDecoderLayer"
    assert f"torch.compile: {parts}, 2 DepthLayer" in caplog.text
    assert blocks_checkpoint(compiled) == [mode == "full"] * 2
    assert compiled.heads["semantic"].activation_checkpointing == mode
    graphs = []
    for count in (3, 6, 4, 5):
        batch = collate(plain, rows()[:count], packed=True)
        (own, logs), (other, others) = (step_gradients(one, [batch]) for one in (compiled, plain))
        for name, gradient in other.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5)
        for name, value in others.items():
            torch.testing.assert_close(logs[name], value)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 4 and graphs[1:] == graphs[1:2] * 3


def test_the_compiler_does_what_selective_checkpointing_does():
    """A model that asks for it becomes one that asks for none."""
    own = model("selective")
    assert blocks_checkpoint(own) == [True] * 2
    assert compile_blocks(own, backend="aot_eager") == 4  # two blocks of the LLM, two of the head
    assert blocks_checkpoint(own) == [False] * 2
    assert own.heads["semantic"].activation_checkpointing == "none"


def test_an_evaluation_between_stages_takes_no_compiled_version():
    """The compiler keeps eight versions of a function: answers of changing lengths would take them all."""
    ran = []

    def backend(graph, inputs):
        return lambda *args: ran.append(graph) or graph(*args)

    def step(own) -> int:
        ran.clear()
        step_gradients(own, [collate(own, rows(), packed=True)])
        return len(ran)

    own = model("none")
    compile_blocks(own, backend=backend)
    first = step(own)
    ran.clear()
    with uncompiled(), torch.inference_mode():
        own.eval()
        for length in range(3, 15):
            embeds = torch.zeros(1, length, 16)
            own.llm.generate(embeds, torch.ones(1, length, dtype=torch.long), max_new_tokens=2, pad_token_id=0)
    assert not ran and step(own.train()) == first > 3
    later = model("none")
    compile_blocks(later, backend=backend)
    assert step(later) == first


def test_an_llm_that_names_no_blocks_is_refused(monkeypatch):
    own = model("none")
    monkeypatch.setattr(type(own.llm), "blocks", [])
    with pytest.raises(ValueError, match="HFCausalLM has no `blocks`"):
        compile_blocks(own)
