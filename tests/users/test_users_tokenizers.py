"""Text tokenizers in every published layout: what is saved is what is read, and no text is read otherwise anywhere."""

import json
import logging
from functools import cache
from pathlib import Path

import pytest
from data_helpers import sentencepiece_like
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_export import tiny
from tokenizer_layouts import LAYOUTS
from transformers import AutoTokenizer

from asvr.data.templates import IMAGE_MARK, build_template
from asvr.data.text_tokenizer import HFTokenizer, TextTokenizer, check_saving, has_vocabulary
from asvr.interchange.processors import as_chat, build_processor, check_ids

# A tokenizer folder of a model has the model's config.json too, which decides what transformers makes of it.
WITH_MODEL = [
    *[(name, None) for name in LAYOUTS],
    *[(name, kind) for name in LAYOUTS for kind in ("llama", "mistral") if name.startswith(("vicuna", "llama,"))],
    *[(name, "qwen2") for name in LAYOUTS if name.startswith("qwen")],
]
TEMPLATES = ("vicuna_v1", "llama_2", "mistral")
texts = st.text(max_size=40) | st.text("aB 1.\n▁<s>/", max_size=20)
layouts = st.sampled_from(WITH_MODEL)


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    @cache
    def of(name: str, model_type: str | None = None) -> HFTokenizer:
        folder = tmp_path_factory.mktemp("layout")
        LAYOUTS[name](folder)
        if model_type:
            (folder / "config.json").write_text(json.dumps(dict(model_type=model_type)))
        return HFTokenizer(name=str(folder))

    return of


@pytest.fixture(scope="module")
def saved_of(tokenizer_of, tmp_path_factory):
    @cache
    def of(name: str, model_type: str | None = None) -> tuple[HFTokenizer, Path]:
        folder = tmp_path_factory.mktemp("saved")
        tokenizer_of(name, model_type).save_pretrained(folder)
        return HFTokenizer(name=str(folder)), folder

    return of


@pytest.mark.parametrize(("name", "model_type"), WITH_MODEL)
def test_what_is_saved_is_read_back(name, model_type, tokenizer_of, saved_of):
    tokenizer, (again, folder) = tokenizer_of(name, model_type), saved_of(name, model_type)
    check_saving(tokenizer)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert sorted(again.hf.all_special_tokens) == sorted(tokenizer.hf.all_special_tokens)
    assert again.prefix_after_control == tokenizer.prefix_after_control
    plain = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "A <s>house</s> of two\n dogs"
    assert plain(text)["input_ids"] == tokenizer.hf(text)["input_ids"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_import_finds_the_tokenizer_beside_the_weights(name, tmp_path):
    assert not has_vocabulary(tmp_path)
    LAYOUTS[name](tmp_path)
    assert has_vocabulary(tmp_path)


def test_legacy_is_kept(tokenizer_of, saved_of):
    """The three values give two tokenizers, and each stays what it is."""
    values = {legacy: saved_of(f"vicuna, model, legacy {legacy}")[0] for legacy in ("true", "false", "absent")}
    assert values["true"].prefix_after_control and not values["false"].prefix_after_control
    assert values["false"].fingerprint() == values["absent"].fingerprint() != values["true"].fingerprint()


@settings(max_examples=150, deadline=None)
@given(layout=layouts, text=texts, second=texts)
def test_no_text_is_read_otherwise_after_saving(layout, text, second, tokenizer_of, saved_of):
    tokenizer, (again, _) = tokenizer_of(*layout), saved_of(*layout)
    for continues in (False, True):
        ids = tokenizer.encode(text, continues=continues)
        assert again.encode(text, continues=continues) == ids
        assert again.decode(ids) == tokenizer.decode(ids)
        assert not set(tokenizer.hf.all_special_ids) - {tokenizer.hf.unk_token_id} & set(ids)


@settings(max_examples=150, deadline=None)
@given(layout=layouts, first=st.text("abAB .,\n", min_size=1, max_size=20), second=st.text("abAB .,\n", max_size=20))
def test_pieces_put_together_are_the_text(layout, first, second, tokenizer_of):
    """Also where transformers gives a text with a space in front another space, as sentencepiece does."""
    tokenizer = tokenizer_of(*layout)
    ids = tokenizer.encode(first) + tokenizer.encode(second, continues=True)
    assert tokenizer.decode(ids).lstrip(" ") == (first + second).lstrip(" ")
    whole = tokenizer.decode(tokenizer.encode(first + second))
    assert tokenizer.decode(ids) == whole


questions = st.lists(
    st.sampled_from([IMAGE_MARK, f"{IMAGE_MARK}\n", "what?", " a\n", "é 你 ", "(1) ", "▁"]), min_size=1
)


@settings(max_examples=120, deadline=None)
@given(
    layout=layouts,
    template=st.sampled_from(TEMPLATES),
    turns=st.lists(st.tuples(questions, st.sampled_from(["yes", " no ", "a\nb", "(2)", "你"])), min_size=1, max_size=3),
)
def test_an_exported_tokenizer_reads_every_conversation_as_in_training(layout, template, turns, exported_of):
    template = "chatml" if layout[0].startswith("qwen") else template
    source, processor, image_id = exported_of(layout, template)
    messages = []
    for question, answer in turns:
        messages += [{"from": "human", "value": "".join(question)}, {"from": "gpt", "value": answer}]
    messages = messages[:-1]
    assume(all(m["value"].replace(IMAGE_MARK, "").strip() or IMAGE_MARK in m["value"] for m in messages))
    images = [Image.new("RGB", (9, 9))] * sum(m["value"].count(IMAGE_MARK) for m in messages)
    item = source._item(0, dict(images=images, messages=messages), build_template(template), answered=False)
    expected = [image_id if token < 0 else token for token in item["input_ids"]]
    as_text = [dict(role="user" if m["from"] == "human" else "assistant", content=m["value"]) for m in messages]
    for chat in (as_chat(messages), as_text):
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        assert processor.tokenizer(prompt, add_special_tokens=False)["input_ids"] == expected


@pytest.fixture(scope="module")
def exported_of(tokenizer_of):
    @cache
    def of(layout: tuple, template: str):
        source = tiny("clip_vision_model", "llama", template, lambda: tokenizer_of(*layout))
        return source, *build_processor(source)

    return of


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_control_tokens_and_spaces_of_sentencepiece_are_exported_together(scheme):
    source = tiny("clip_vision_model", "llama", "chatml", lambda: sentencepiece_like(scheme))
    processor, image_id = build_processor(source)
    check_ids(source, processor, image_id)


class Lowered(TextTokenizer):
    """A user's own: what it does is in no file."""

    def encode(self, text, *, control=False, continues=False):
        return super().encode(text if control else text.lower(), control=control, continues=continues)


def test_a_tokenizer_whose_files_are_another_one_is_refused(tokenizer_of):
    own = Lowered(tokenizer_of("qwen, both").hf)
    with pytest.raises(ValueError, match="cannot be saved: its files are read back as another one") as error:
        check_saving(own)
    assert "\n" not in str(error.value)


class Elsewhere(TextTokenizer):
    """A user's own, with files of its own."""

    def save_pretrained(self, folder):
        (Path(folder) / "own.txt").write_text("words")


def test_a_tokenizer_with_files_of_its_own_is_told_of(tokenizer_of, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("asvr"), "propagate", True)
    check_saving(Elsewhere(tokenizer_of("qwen, both").hf))
    assert "text_tokenizer Elsewhere: its files are not Hugging Face's" in caplog.text


@pytest.mark.parametrize("model_type", ["t5", "bart", "whisper", "llama"])
def test_a_model_type_alone_is_no_tokenizer(model_type, tmp_path):
    """transformers makes one of three tokens of it."""
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type=model_type)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="LlamaTokenizer")))
    with pytest.raises(ValueError, match="no text tokenizer is in it, expected one of tokenizer.json"):
        HFTokenizer(name=str(tmp_path))


def test_broken_files_are_told_in_one_line(tmp_path):
    for content in ("{", "[]", "{}", '{"added_tokens": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="cannot be read: ") as error:
            HFTokenizer(name=str(tmp_path))
        assert "\n" not in str(error.value)
