"""Architectures spelled out in a config."""

import pytest

from asvr.base.arch import arch_bytes, check_arch

TINY = dict(
    model_type="llama", vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
)


def test_the_size_of_an_architecture_follows_its_dtype():
    assert arch_bytes(dict(TINY, dtype="float16")) * 2 == arch_bytes(TINY)
    # embeddings and LM head, one block (attention, gated MLP, two norms), the final norm
    assert arch_bytes(TINY) == 4 * (2 * 50 * 8 + 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8 + 8)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (dict(model_type="lama"), "llm.arch.model_type='lama': unknown to transformers; did you mean 'llama'"),
        (dict(hiden_size=8), "llm.arch.hiden_size: llama has no such field; did you mean 'hidden_size'"),
        (dict(rope_theta=1e6), "llm.arch.rope_theta: llama has no such field; known: "),
        (dict(hidden_size="8"), "llm.arch: Validation error for field 'hidden_size'"),
        (dict(hidden_size=9), "llm.arch: Class validation error"),
    ],
)
def test_a_mistake_is_named(change, problem):
    (found,) = check_arch("llm.arch", TINY | change)
    assert found.startswith(problem)


def test_what_is_right_passes_under_either_name():
    assert check_arch("llm.arch", TINY) == []
    assert check_arch("llm.arch", dict(model_type="gpt2", hidden_size=8, n_head=2)) == []
    assert check_arch("llm.arch", dict(hidden_size=8)) == [
        "llm.arch.model_type is missing: expected a model type of transformers, such as 'llama'"
    ]
