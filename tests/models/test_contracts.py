"""A component of one's own that does not keep its contract: the error names the component, the contract and what is
wrong, before any weight is read."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from vlm_helpers import ENCODER, LLAMA, PIXEL, SEMANTIC

from asvr.base.log_once import forget
from asvr.data.transforms import ImageTransform
from asvr.models.contracts import check_contracts
from asvr.models.vlm import VLM
from asvr.registry import ENCODERS, HEADS, LLMS, LOSSES, PROJECTORS, TEXT_TOKENIZERS, VISUAL_TOKENIZERS

REGISTRIES = dict(
    encoder=ENCODERS, projector=PROJECTORS, llm=LLMS, tokenizer=VISUAL_TOKENIZERS, head=HEADS, loss=LOSSES
)
KEYS = {kind: f"model.{kind}" for kind in ("encoder", "projector", "llm")}
KEYS |= {kind: f"model.reconstruction[0].{kind}" for kind in ("tokenizer", "head", "loss")}
D, C, V = 2, 4, 5


class Patches(nn.Module):
    """An encoder that keeps its contract, as the others below do but for one thing."""

    width, grid, num_tokens, transform = 48, (2, 2), 4, ImageTransform(size=(8, 8))

    def __init__(self, *, load_weights=True):
        super().__init__()

    def forward(self, pixels):
        return nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2)


class Linear(nn.Module):
    def __init__(self, *, in_width, out_width):
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, features_INE):
        return self.linear(features_INE)


class Codes(nn.Module):
    codebook_sizes, depth, code_width, grid, num_tokens = [V] * D, D, C, (2, 2), 4
    transform = ImageTransform(size=(8, 8))

    def __init__(self, *, load_weights=True):
        super().__init__()
        self.vectors = nn.Embedding(V, C)

    def encode(self, pixels):
        return torch.zeros(len(pixels), 4, D, dtype=torch.long)

    def embed(self, codes):
        return self.vectors(codes)


class Classify(nn.Module):
    def __init__(self, *, hidden_size, codebook_sizes, code_width):
        super().__init__()
        self.classifiers = nn.ModuleList([nn.Linear(hidden_size, size) for size in codebook_sizes])

    def forward(self, hidden_PH, vectors_PDC):
        return hidden_PH[:, None].expand(-1, len(self.classifiers), -1)


class Sum(nn.Module):
    def forward(self, states_PDW, classifiers, codes_PD):
        logits = [classifier(states_PDW[:, d]) for d, classifier in enumerate(classifiers)]
        return sum(each.sum() for each in logits), torch.stack([(each > 0).sum() for each in logits])


KEEPING = dict(encoder=Patches, projector=Linear, tokenizer=Codes, head=Classify, loss=Sum)


def with_parts(**classes) -> VLM:
    """On the meta device, of the components above, or of others."""
    types = {}
    for kind, part in (KEEPING | classes).items():
        types[kind] = dict(type=f"Test{kind}")
        REGISTRIES[kind].register_module(module=part, name=f"Test{kind}", force=True)
    target = dict(SEMANTIC, **{kind: types[kind] for kind in ("tokenizer", "head", "loss")})
    try:
        with torch.device("meta"):
            return VLM(
                encoder=types["encoder"],
                projector=types["projector"],
                llm=types.get("llm", dict(type="HFCausalLM", arch=LLAMA)),
                reconstruction=[target],
                vocab_size=32,
                load_weights=False,
            )
    finally:
        for kind in types:
            REGISTRIES[kind].module_dict.pop(f"Test{kind}")


def changed(base: type, **attributes) -> type:
    return type("Mine", (base,), dict(attributes, __module__="mine"))


def test_components_that_keep_their_contracts_are_not_told(caplog):
    forget()
    model = with_parts().train()
    check_contracts(model)
    assert model.training and "not tried" not in caplog.text


@pytest.mark.parametrize(
    "kind, attributes, words",
    [
        ("encoder", dict(forward=lambda self, pixels: pixels), r"has the shape \(1, 3, 8, 8\), expected \(1, 4, 48\)"),
        ("encoder", dict(width=12), r"has the shape \(1, 4, 48\), expected \(1, 4, 12\)"),
        ("encoder", dict(forward=lambda self, pixels: [pixels]), r"is list, expected a tensor \(1, 4, 48\)"),
        ("projector", dict(forward=lambda self, x: x), r"has the shape \(1, 4, 48\), expected \(1, 4, 16\)"),
        ("tokenizer", dict(embed=lambda self, codes: self.vectors(codes).sum(1)), r"embed\(codes_PD\) has the shape"),
        ("tokenizer", dict(encode=lambda self, x: torch.zeros(1, 4, D)), "is torch.float32, expected integers"),
        ("tokenizer", dict(encode=lambda self, x: torch.zeros(1, 9, D)), r"has the shape \(1, 9, 2\), expected \(1, 4"),
        (
            "head",
            dict(forward=lambda self, hidden, vectors: hidden),
            r"has the shape \(2, 16\), expected \(2, 2, any\)",
        ),
        (
            "loss",
            dict(forward=lambda self, states, classifiers, codes: states.sum()),
            "gives Tensor, expected two tensors",
        ),
        ("loss", dict(forward=lambda self, s, c, codes: (s.sum(1), codes)), r"the first of two, has the shape \(2, 16"),
        ("loss", dict(forward=lambda self, s, c, codes: (s.sum(), s.sum())), r"the second of two, has the shape \(\)"),
    ],
)
def test_a_wrong_shape_is_told_with_the_contract(kind, attributes, words):
    registry = REGISTRIES[kind]
    model = with_parts(**{kind: changed(KEEPING[kind], **attributes)})
    with pytest.raises(ValueError, match=words) as error:
        check_contracts(model)
    told = str(error.value)
    assert told.startswith(f"{KEYS[kind]}: Mine does not keep the {registry.name} contract (docs/components.md): ")
    assert told.endswith(f"The contract: {registry.contract}") and "\n" not in told


def test_a_head_with_too_few_classifiers_is_told():
    class Mine(Classify):
        def __init__(self, **given):
            super().__init__(**given)
            self.classifiers = self.classifiers[:1]

    with pytest.raises(ValueError, match="it has 1 classifiers, expected 2, one for each code depth"):
        check_contracts(with_parts(head=Mine))


class Words(nn.Module):
    """An LLM that is none of transformers'."""

    hidden_size, num_layers, generate = 6, 1, None

    def __init__(self, *, vocab_size, load_weights):
        super().__init__()
        self.words, self.lm_head = nn.Embedding(vocab_size, 6), nn.Linear(6, vocab_size)

    def embed(self, ids_BT):
        return self.words(ids_BT)

    def hidden(self, embeds_BTH, taps, mask_BT=None, segments=None):
        return {-1: embeds_BTH}


@pytest.mark.parametrize(
    "attributes, words",
    [
        ({}, None),
        (dict(hidden=lambda self, embeds, taps: embeds), r"is Tensor, expected dict\(tap -> hidden_BTH\) with -1"),
        (
            dict(embed=lambda self, ids: self.words(ids)[..., :5]),
            r"has the shape \(1, 3, 5\), expected \(1, 3, 6\)",
        ),
    ],
)
def test_an_llm_of_ones_own_is_tried(attributes, words):
    model = with_parts(llm=changed(Words, **attributes))
    with pytest.raises(ValueError, match=f"model.llm: Mine .*{words}") if words else nullcontext():
        check_contracts(model)


@pytest.mark.parametrize(
    "kind, name", [("encoder", "grid"), ("tokenizer", "code_width"), ("head", "classifiers"), ("llm", "lm_head")]
)
def test_an_attribute_that_is_missing_is_told_when_a_component_is_built(kind, name):
    class Mine(nn.Module):
        def __init__(self, **given):
            super().__init__()

    with pytest.raises(ValueError, match=f"Mine does not keep the {REGISTRIES[kind].name} contract.*no .*{name}"):
        with_parts(**{kind: Mine})


def test_what_needs_numbers_is_named_in_a_warning(caplog):
    """The contract lets a forward pass need them: the meta device has none."""
    forget()
    for _ in range(2):
        check_contracts(with_parts(encoder=changed(Patches, forward=lambda self, pixels: pixels * pixels.sum().item())))
    assert (
        caplog.text.count(
            "model.encoder: Mine is not tried before the run, since it does not run without numbers (RuntimeError"
        )
        == 1
    )


def test_the_librarys_own_components_are_not_tried(monkeypatch):
    model = VLM(
        encoder=ENCODER,
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", arch=LLAMA),
        reconstruction=[SEMANTIC, dict(PIXEL, resample="nearest")],
        vocab_size=32,
    )
    monkeypatch.setattr(type(model.encoder), "forward", None)
    monkeypatch.setattr(type(model.projector), "forward", None)
    check_contracts(model)  # which would call them


def test_a_text_tokenizer_without_all_of_its_parts_is_told():
    class Mine:
        def encode(self, text, *, control=False, continues=False):
            return []

    with pytest.raises(ValueError, match="Mine does not keep the text tokenizer contract.*it has no decode"):
        TEXT_TOKENIZERS.build(dict(type=Mine))
