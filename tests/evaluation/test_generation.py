"""Answers in a batch are the answers one by one."""

from types import SimpleNamespace

import pytest
import torch
from engine_helpers import collate, item, tiny_model
from PIL import Image

from asvr.data.templates import build_template
from asvr.evaluation.generation import generate, to_the_left


class Words:
    """Ids as they are, so that answers can be compared exactly; nothing ends them."""

    pad_id, eos_id = 0, 31

    def decode(self, ids) -> str:
        return " ".join(str(i) for i in ids)


def prompts() -> list[dict]:
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "navy")]
    return [item(words=3), item(words=9, image=pictures[0]), item(words=1, image=pictures[1]), item(words=14)]


@pytest.fixture
def model():
    """With larger weights than at the start, so that answers depend on the whole prompt."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(3)
    for parameter in [*model.llm.parameters(), *model.projector.parameters()]:
        if parameter.ndim > 1:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def greedy_by_hand(model, prompt: dict, count: int) -> str:
    """The most probable word after another, the whole row computed anew each time, without a cache or a mask."""
    batch = collate(model)([prompt])
    with torch.no_grad():
        embeds, _ = model.embed(batch)
        ids = []
        for _ in range(count):
            hidden = model.llm.hidden(embeds)[-1]
            ids.append(model.llm.lm_head(hidden[:, -1]).argmax(-1))
            embeds = torch.cat([embeds, model.llm.embed(ids[-1][:, None])], dim=1)
    return Words().decode([i.item() for i in ids])


def test_left_padding_changes_no_answer(model):
    together = generate(model, collate(model)(prompts()), Words(), max_new_tokens=6)
    alone = [generate(model, collate(model)([p]), Words(), max_new_tokens=6)[0] for p in prompts()]
    assert together == alone == [greedy_by_hand(model, prompt, 6) for prompt in prompts()]
    assert len(set(together)) == len(together)  # otherwise equality would say little


def test_an_answer_depends_on_the_picture(model):
    colors = [[item(words=4, image=Image.new("RGB", (8, 8), color))] for color in ("white", "black")]
    white, black = (generate(model, collate(model)(row), Words(), max_new_tokens=6) for row in colors)
    assert white != black


def test_the_end_token_ends_an_answer(model):
    (answer,) = generate(model, collate(model)([prompts()[0]]), Words(), max_new_tokens=6)
    words = answer.split()
    ending = Words()
    ending.eos_id = int(words[2])
    (shorter,) = generate(model, collate(model)([prompts()[0]]), ending, max_new_tokens=6)
    assert shorter.split() == words[: words.index(words[2]) + 1]


def test_a_template_ends_an_answer_too(model):
    row = collate(model)([prompts()[0]])
    words = generate(model, row, Words(), max_new_tokens=6)[0].split()

    class Control(Words):
        def encode(self, text, *, control):
            assert control
            return [int(text)]

    (by_token,) = generate(
        model, row, Control(), template=SimpleNamespace(stop=words[2], stop_text=None), max_new_tokens=6
    )
    assert by_token.split() == words[: words.index(words[2]) + 1]
    (by_text,) = generate(
        model, row, Words(), template=SimpleNamespace(stop=None, stop_text=" " + words[2]), max_new_tokens=6
    )
    assert by_text.split() == words[: words.index(words[2])]


def test_templates_end_an_answer_as_they_write_it():
    assert build_template("chatml").stop == "<|im_end|>" and build_template("plain").stop_text == "\n"
    assert build_template("vicuna_v1").stop is build_template("vicuna_v1").stop_text is None


def test_a_folders_own_generation_settings_do_not_count(model):
    """Greedy is the most probable token, whatever ``generation_config.json`` says."""
    assert model.llm.model.generation_config.repetition_penalty in (None, 1.0)


def test_moving_to_the_left_moves_padding_only():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    embeds = torch.arange(9.0).view(3, 3, 1) + 1
    index, moved_mask = to_the_left(mask)
    moved = embeds.gather(1, index[..., None])
    assert moved_mask.tolist() == [[False, True, True], [True, True, True], [False, False, True]]
    assert [row[keep].flatten().tolist() for row, keep in zip(moved, moved_mask, strict=True)] == [
        [1, 2],
        [4, 5, 6],
        [7],
    ]
