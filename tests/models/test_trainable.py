"""What a stage's ``train`` names is trained, and nothing else."""

import pytest
import torch
from engine_helpers import tiny_model
from torch import nn

from asvr.models.trainable import components_of, near_names, trained_shares


def trained(model, part: str) -> set[str]:
    return {key for key, p in model.components()[part].named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("llm.*.self_attn", lambda key: ".self_attn." in key),  # a module: all that is in it
        ("llm.*norm.weight", lambda key: key.endswith("norm.weight")),
        ("llm.model.model.layers.[0-9].mlp.up_proj", lambda key: ".up_proj." in key),
        ("llm", lambda key: True),
        ("llm.*", lambda key: True),
    ],
)
def test_a_pattern_names_weights_and_modules(entry, expected):
    model = tiny_model(train=["projector", entry])
    every = {key for key, _ in model.llm.named_parameters()}
    assert trained(model, "llm") == {key for key in every if expected(key)} != set()
    assert trained(model, "projector") and not trained(model, "heads") and not trained(model, "encoder")


def test_the_last_call_alone_counts():
    model = tiny_model(train=["llm.*.mlp"])
    for names in (["llm"], ["llm.*.mlp", "heads"], ["heads"], ["llm"]):
        model.train_only(names)
        every = {key for key, _ in model.llm.named_parameters()}
        expected = {"llm": every, "llm.*.mlp": {key for key in every if ".mlp." in key}}
        assert trained(model, "llm") == expected.get(names[0], set())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("llm.*.self_atn", r"matches no weight of the llm; did you mean 'llm.\*.self_attn'"),
        ("lm.*", r"unknown \['lm.\*'\]; expected some of encoder, projector, llm, heads, or patterns"),
        ("tokenizer.semantic", "unknown"),
        ("losses", "unknown"),
    ],
)
def test_a_pattern_of_nothing_is_told_with_what_is_near(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_model(train=[entry])
    assert "\n" not in str(error.value)


def test_near_names_have_a_star_for_numbers():
    names = [f"llm.layers.{i}.mlp.{way}_proj.weight" for i in range(40) for way in ("up", "down")]
    assert near_names("llm.layers.3.mlp.upproj", names).startswith("did you mean 'llm.layers.*.mlp.up_proj'")
    assert near_names("llm.*.upproj", names).startswith("did you mean 'llm.*.up_proj'")


def test_components_are_what_entries_begin_with():
    assert components_of(["llm.*.mlp", "llm", "heads.semantic"]) == {"llm", "heads"}


def test_statistics_of_a_norm_that_a_pattern_left_out_do_not_move():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.second(self.first(x))

    model = tiny_model()
    model.encoder = Tower()
    model.train_only(["encoder.second"])
    model.train()
    before = [norm.running_mean.clone() for norm in (model.encoder.first, model.encoder.second)]
    model.encoder(torch.randn(8, 2) + 5)
    assert torch.equal(model.encoder.first.running_mean, before[0])
    assert not torch.equal(model.encoder.second.running_mean, before[1])


def test_shares_are_of_the_weights_of_products():
    model = tiny_model(train=["projector", "llm.*.self_attn"])
    width, inner, vocabulary = 16, 24, 32
    attention = 4 * width**2
    expected = attention / (attention + 3 * width * inner + vocabulary * width)
    assert trained_shares(model) == {"projector": 1.0, "llm": expected}
    model.train_only(["llm.model.model.embed_tokens"])  # a table: looked up, not multiplied
    assert trained_shares(model) == {"llm": 0.0}
