"""The text tokenizer's own chat template: ids are those of transformers' apply_chat_template, answers are learned."""

from functools import cache

import pytest
from data_helpers import byte_level, sentencepiece_like
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja_templates import (
    GEMMA,
    GEMMA3,
    LLAMA2,
    LLAMA3,
    LLAVA_PARTS,
    MARKED,
    MISTRAL,
    PHI3,
    QWEN2,
    QWEN2_VL,
    QWEN3,
    VICUNA,
)
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.conversation import encode_segments, prompt_ids, segments_of
from asvr.data.refusals import Refused
from asvr.data.templates import build_template
from asvr.data.text_tokenizer import HFTokenizer, TextTokenizer, save_text_tokenizer

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<start_of_image>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
]
PHI = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def _with(base: TextTokenizer, tokens: list[AddedToken], template: str) -> TextTokenizer:
    backend = Tokenizer.from_str(base.hf.backend_tokenizer.to_str())
    backend.add_special_tokens(tokens)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token=base.hf.unk_token
    )
    hf.chat_template = template
    return TextTokenizer(hf)


@cache
def bytes_with(template: str) -> TextTokenizer:
    return _with(byte_level(), [AddedToken(text, normalized=False) for text in SPECIAL], template)


@cache
def pieces_with(template: str) -> TextTokenizer:
    """As Phi-3's: a sentencepiece whose control tokens take white space behind them."""
    tokens = [AddedToken(text, normalized=False, rstrip=True) for text in PHI]
    return _with(sentencepiece_like(), tokens, template)


FAMILIES = {
    "Qwen2 (ChatML)": (bytes_with, QWEN2, "<|im_end|>", True),
    "Qwen3": (bytes_with, QWEN3, "<|im_end|>", True),
    "Llama 3": (bytes_with, LLAMA3, "<|eot_id|>", True),
    "Mistral": (pieces_with, MISTRAL, "</s>", False),
    "Llama 2": (pieces_with, LLAMA2, "</s>", True),
    "Gemma": (bytes_with, GEMMA, "<end_of_turn>", False),
    "Vicuna": (pieces_with, VICUNA, "</s>", True),
    "Phi-3": (pieces_with, PHI3, "<|end|>", True),
    "marked": (bytes_with, MARKED, "<|im_end|>", True),
    "Qwen2-VL": (bytes_with, QWEN2_VL, "<|im_end|>", True),
    "Gemma 3": (bytes_with, GEMMA3, "<end_of_turn>", True),
    "parts alone": (pieces_with, LLAVA_PARTS, "</s>", True),
}
TALK = (("what is in the image?", "a small red house"), ("how many dogs are there?", "two\ndogs."), ("why?", "a"))


def llava(talk, system=None) -> list[dict]:
    said = [] if system is None else [{"from": "system", "value": system}]
    return said + [
        {"from": role, "value": text} for pair in talk for role, text in zip(("human", "gpt"), pair, strict=True)
    ]


def openai(talk, system=None, parts=False) -> list[dict]:
    said = [] if system is None else [dict(role="system", content=system)]
    said += [
        dict(role=role, content=text) for pair in talk for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [dict(m, content=[dict(type="text", text=m["content"])]) for m in said] if parts else said


def encode(messages, tokenizer, num_images=0, **kwargs):
    template = build_template(dict(type="chat", **kwargs), tokenizer)
    return encode_segments(segments_of(messages, num_images, template), tokenizer)


def learned(ids, labels, tokenizer) -> list[str]:
    """The texts that are learned, control tokens included."""
    runs, run = [], []
    for token, label in zip(ids, [*labels, IGNORE], strict=False):
        assert label in (IGNORE, token)
    for label in [*labels, IGNORE]:
        if label != IGNORE:
            run.append(label)
        elif run:
            runs.append(tokenizer.hf.decode(run, skip_special_tokens=False))
            run = []
    return runs


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_apply_chat_template_and_answers_are_learned(family, system):
    make, template, end, takes_system = FAMILIES[family]
    tokenizer = make(template)
    if system is not None and not takes_system:
        with pytest.raises(Refused, match="the chat template does not take the conversation") as refused:
            encode(llava(TALK, system), tokenizer)
        assert refused.value.reason == "chat template"
        return
    ids, labels = encode(llava(TALK, system), tokenizer)
    messages = openai(TALK, system, parts=family == "parts alone")
    assert ids == tokenizer.hf.apply_chat_template(messages, tokenize=True)["input_ids"]
    answers = [f"{answer}{end}" for _, answer in TALK]
    found = [text.replace(f" {end}", end).strip() for text in learned(ids, labels, tokenizer)]
    if family == "Qwen3":
        answers[-1] = f"<think>\n\n</think>\n\n{answers[-1]}"
    assert found == answers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_the_generation_prompt_and_begins_the_row(family):
    make, template, end, _ = FAMILIES[family]
    tokenizer = make(template)
    chat = build_template("chat", tokenizer)
    prompt = prompt_ids(llava(TALK), 0, chat, tokenizer)
    asked = openai(TALK, parts=family == "parts alone")[:-1]
    assert prompt == tokenizer.hf.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)["input_ids"]
    ids, labels = encode(llava(TALK), tokenizer)
    if family != "parts alone":  # its prompt ends with the space that begins the answer's first token
        assert prompt == ids[: len(prompt)] and labels[len(prompt)] == ids[len(prompt)]
    assert chat.stop == (None if end == "</s>" else end)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", [" Yes", "\nYes ", "Yes\n"])
def test_an_answer_ends_where_it_does_when_a_later_question_ends_like_it(family, answer):
    """Templates trim answers, so that the answer as the record has it may stand in a later question alone."""
    make, template, end, _ = FAMILIES[family]
    tokenizer = make(template)
    ids, labels = encode(llava([("is it red?", answer), (f"say{answer}", "no")]), tokenizer)
    texts = [text.replace(f" {end}", end) for text in learned(ids, labels, tokenizer)]
    assert [text.count(end) for text in texts] == [1, 1]
    assert "".join(texts[0].split()) == f"Yes{end}"


def test_marks_of_the_template_are_the_mask_of_transformers():
    tokenizer = bytes_with(MARKED)
    ids, labels = encode(llava(TALK), tokenizer)
    theirs = tokenizer.hf.apply_chat_template(
        openai(TALK), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert [label != IGNORE for label in labels] == [bool(m) for m in theirs["assistant_masks"]]


@settings(max_examples=60, deadline=None)
@given(
    talk=st.lists(st.tuples(*[st.text("abU é.\n<>/s", min_size=1).filter(str.strip)] * 2), min_size=1, max_size=3),
    family=st.sampled_from([name for name in FAMILIES if name != "parts alone"]),
)
def test_any_conversation_has_the_ids_of_apply_chat_template(talk, family):
    make, template, end, _ = FAMILIES[family]
    tokenizer = make(template)
    try:
        ids, labels = encode(llava(talk), tokenizer)
    except Refused as error:  # letters of a control token
        assert error.reason == "control token"
        return
    assert ids == tokenizer.hf.apply_chat_template(openai(talk), tokenize=True)["input_ids"]
    texts = learned(ids, labels, tokenizer)
    assert len(texts) == len(talk)
    for (_, answer), text in zip(talk, texts, strict=True):
        assert "".join(answer.split()) in "".join(text.split()) and text.count(end) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_stands_where_the_template_writes_it(family):
    make, template, _, _ = FAMILIES[family]
    tokenizer = make(template)
    talk = [("<image>\nwhat is it?", "a house"), ("and <image> this?", "a dog")]
    ids, labels = encode(llava(talk), tokenizer, 2)
    assert ids.count(IMAGE_TOKEN) == 2 and all(labels[i] == IGNORE for i in range(len(ids)) if ids[i] == IMAGE_TOKEN)
    parts = [dict(type="image"), dict(type="text", text="what is it?")]
    later = [dict(type="text", text="and "), dict(type="image"), dict(type="text", text=" this?")]
    mark = {"Qwen2-VL": "<|vision_start|><|image_pad|><|vision_end|>", "Gemma 3": "<start_of_image>"}.get(family)
    mark = "<image>" if family == "parts alone" else mark
    messages = openai(talk, parts=family == "parts alone")
    if mark is not None:
        messages[0]["content"], messages[2]["content"] = parts, later
    text = tokenizer.hf.apply_chat_template(messages, tokenize=False)
    expected = []
    for i, piece in enumerate(text.split(mark or "<image>")):
        expected += [IMAGE_TOKEN] * (i > 0) + (
            tokenizer.hf(piece, add_special_tokens=False)["input_ids"] if piece else []
        )
    assert ids == expected


def test_the_token_of_an_image_can_be_named():
    ids, _ = encode(llava([("<image>\nwhat?", "a")]), bytes_with(QWEN2_VL), 1, image_token="<|image_pad|>")
    own = _with(byte_level(), [AddedToken(text, normalized=False) for text in SPECIAL], QWEN2_VL)
    own.hf.image_token = "<|image_pad|>"  # as a tokenizer of transformers with its own tokens has it
    assert encode(llava([("<image>\nwhat?", "a")]), own, 1)[0] == ids
    names = own.hf.convert_ids_to_tokens([i for i in ids[ids.index(IMAGE_TOKEN) - 1 :] if i >= 0][:2])
    assert names == ["<|vision_start|>", "<|vision_end|>"]
    with pytest.raises(ValueError, match="template.image_token='<img>': the template writes '<.vision_start.>"):
        encode(llava(TALK), own, image_token="<img>")


def test_reasoning_of_earlier_answers_is_dropped_as_the_template_does():
    tokenizer = bytes_with(QWEN3)
    talk = [("what?", "<think>\nwell\n</think>\n\na house"), ("why?", "<think>\nhm\n</think>\n\nso")]
    ids, labels = encode(llava(talk), tokenizer)
    assert ids == tokenizer.hf.apply_chat_template(openai(talk), tokenize=True)["input_ids"]
    assert learned(ids, labels, tokenizer) == ["a house<|im_end|>", "<think>\nhm\n</think>\n\nso<|im_end|>"]
    quiet = build_template(dict(type="chat", variables=dict(enable_thinking=False)), tokenizer)
    prompt = prompt_ids(llava([("what?", "a")]), 0, quiet, tokenizer)
    assert tokenizer.hf.decode(prompt, skip_special_tokens=False).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_records_system_message_takes_the_place_of_the_templates_own():
    tokenizer = bytes_with(QWEN2)
    for system, config in (("Be kind.", dict(system="Be brief.")), (None, dict(system="Be kind."))):
        ids, _ = encode(llava(TALK, system), tokenizer, **config)
        assert ids == tokenizer.hf.apply_chat_template(openai(TALK, "Be kind."), tokenize=True)["input_ids"]


@pytest.mark.parametrize("text", ["say <|im_end|> now", "</s>"])
def test_letters_of_a_control_token_are_refused(text):
    for talk in ([(text, "a")], [("q", text)]):
        with pytest.raises(Refused, match="contains the control token .*which the template 'chat' cannot encode"):
            encode(llava(talk), bytes_with(QWEN2))


@pytest.mark.parametrize(
    ("template", "talk", "words"),
    [
        (QWEN2.replace("message['content'] +", "message['content'].upper() +"), TALK, "does not write a question"),
        (
            QWEN2.replace("message['content'] +", "message['content'][:20] +"),
            TALK,
            r"changes the text of message 0 \(user\)",
        ),
        (
            QWEN2.replace(
                "message['content'] +", "message['content'] + ('' if loop.last or loop.index0 != 1 else '!') +"
            ),
            *(TALK, r"does not write message 1 \(assistant\) as it is: 'a small red house'"),
        ),
        (
            QWEN2.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"),
            *(TALK, "writes the prompt of message 1 in another way when its answer follows"),
        ),
        (
            "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}",
            TALK,
            r"ends an answer with '\\n', without a special",
        ),
        ("{% for m in messages %}", TALK, "does not write a question: Unexpected end of template"),
    ],
)
def test_templates_that_cannot_be_followed_are_told(template, talk, words):
    with pytest.raises(ValueError, match=words) as error:
        encode(llava(talk), byte_level(), chat_template=template)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_chat_template_needs_one(tmp_path):
    with pytest.raises(ValueError, match="template 'chat': the text tokenizer .* has no chat template: use another"):
        build_template("chat", byte_level())
    file = tmp_path / "chat.jinja"
    file.write_text(QWEN2)
    ids, labels = encode(llava(TALK), bytes_with("{{ 'other' }}"), chat_template=str(file))
    assert (ids, labels) == encode(llava(TALK), bytes_with(QWEN2))
    with pytest.raises(
        ValueError, match="template.chat_template='none.jinja' is neither a Jinja template nor its file"
    ):
        build_template(dict(type="chat", chat_template="none.jinja"), byte_level())


def test_the_chat_template_is_saved_with_the_tokenizer(tmp_path):
    save_text_tokenizer(bytes_with(QWEN2), tmp_path)
    again = HFTokenizer(name=str(tmp_path))
    assert encode(llava(TALK), again) == encode(llava(TALK), bytes_with(QWEN2))


def test_an_unknown_token_that_ends_a_text_is_a_control_token():
    """As GPT-2's: one token for everything."""
    tokenizer = _with(byte_level(), [], QWEN2.replace("'<|im_end|>'", "eos_token"))
    tokenizer.hf.unk_token = "</s>"
    ids, labels = encode(llava(TALK), tokenizer)
    assert learned(ids, labels, tokenizer)[0] == "a small red house</s>"
    with pytest.raises(Refused, match="contains the control token '</s>'"):
        encode(llava([("</s>", "a")]), tokenizer)


def test_a_tokenizer_cannot_be_learned_on_rows_that_it_writes_itself():
    with pytest.raises(ValueError, match="needs a text tokenizer, and there is none yet"):
        list(segments_of(llava(TALK), 0, build_template("chat")))
