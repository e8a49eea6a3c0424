import pytest
from data_helpers import TOKENIZERS, byte_level, chat, sentencepiece_like
from hypothesis import given, settings
from hypothesis import strategies as st

from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.conversation import encode_segments, parse_rounds, prompt_ids, segments_of, truncate
from asvr.data.refusals import Refused
from asvr.data.templates import (
    BOS,
    IMAGE,
    LLAVA_LLAMA_2_SYSTEM,
    VICUNA_SYSTEM,
    Segment,
    Template,
    build_template,
)

CHATS = ("vicuna_v1", "llama_2", "mistral", "chatml")
TALK = ("what is in the picture?", "a small red house.", "how many dogs are there?", "there are two dogs")
WORDS = st.text("ab Ué.\n<>/s", min_size=1).filter(str.strip)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def encode(messages, num_images, template, tokenizer):
    return encode_segments(segments_of(messages, num_images, build_template(template)), tokenizer)


def written(template, talk):
    """The whole row as one text, as the template's authors publish it."""
    q1, a1, q2, a2 = talk
    return {
        "vicuna_v1": f"{VICUNA_SYSTEM} USER: {q1} ASSISTANT: {a1}</s>USER: {q2} ASSISTANT: {a2}</s>",
        "llama_2": f"[INST] <<SYS>>\n{LLAVA_LLAMA_2_SYSTEM}\n<</SYS>>\n\n{q1} [/INST] {a1} </s>"
        f"<s>[INST] {q2} [/INST] {a2} </s>",
        "mistral": f"[INST] {q1} [/INST] {a1} </s>[INST] {q2} [/INST] {a2} </s>",
        "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{q1}<|im_end|>\n<|im_start|>assistant\n{a1}<|im_end|>\n"
        f"<|im_start|>user\n{q2}<|im_end|>\n<|im_start|>assistant\n{a2}<|im_end|>\n",
    }[template]


@pytest.mark.parametrize("template", CHATS)
def test_segments_give_the_ids_of_the_whole_text(template, tokenizer):
    ids, _ = encode(chat(*TALK), 0, template, tokenizer)
    assert ids == tokenizer.hf(written(template, TALK))["input_ids"]


@pytest.mark.parametrize("template", CHATS)
def test_text_around_a_picture_is_encoded_as_llava_does(template, tokenizer):
    """LLaVA splits the row's text at the marks and encodes each part with the tokenizer as it is."""
    ids, _ = encode(chat(f"<image>\n{TALK[0]}", *TALK[1:]), 1, template, tokenizer)
    before, after = written(template, (f"<image>\n{TALK[0]}", *TALK[1:])).split("<image>")
    parts = [tokenizer.hf(text)["input_ids"] for text in (before, after)]
    assert ids == [*parts[0], IMAGE_TOKEN, *parts[1][1:]]


@pytest.mark.parametrize("template", CHATS)
def test_exactly_the_answers_and_their_end_are_learned(template, tokenizer):
    ids, labels = encode(chat(*TALK), 0, template, tokenizer)
    end = tokenizer.encode("<|im_end|>", control=True)[0] if template == "chatml" else tokenizer.eos_id
    spans, span = [], []
    for label in labels:
        if label != IGNORE:
            span.append(label)
        if label == end:
            spans.append(span)
            span = []
    assert [tokenizer.decode(span).strip() for span in spans] == [TALK[1], TALK[3]] and not span
    assert all(label in (IGNORE, token) for label, token in zip(labels, ids, strict=True))


def test_plain_learns_the_caption_alone(tokenizer):
    ids, labels = encode(chat("Describe it.\n<image>", "a red house"), 1, "plain", tokenizer)
    caption = tokenizer.encode("a red house\n")
    assert ids == [tokenizer.bos_id, IMAGE_TOKEN, *caption]
    assert labels == [IGNORE, IGNORE, *caption]


@pytest.mark.parametrize("messages, images", [(chat("what?", "a"), 0), (chat("<image>", "a", "b", "c"), 1)])
def test_plain_refuses_what_is_no_caption(messages, images):
    with pytest.raises(Refused, match="chat template"):
        encode(messages, images, "plain", byte_level())


@pytest.mark.parametrize("template", ["plain", *CHATS])
def test_pictures_alone_need_no_template(template):
    tokenizer = byte_level()
    ids, labels = encode([], 2, template, tokenizer)
    assert ids == [tokenizer.bos_id, IMAGE_TOKEN, IMAGE_TOKEN] and set(labels) == {IGNORE}


@settings(max_examples=60, deadline=None)
@given(
    talk=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
    template=st.sampled_from(CHATS),
    tokenizer=st.sampled_from([byte_level(), sentencepiece_like(), sentencepiece_like("always")]),
)
def test_a_prompt_is_a_prefix_of_the_training_row(talk, template, tokenizer):
    messages = chat(*(text for pair in talk for text in pair))
    ids, labels = encode(messages, 1, template, tokenizer)
    prompt = prompt_ids(messages, 1, build_template(template), tokenizer)
    assert prompt == ids[: len(prompt)] == prompt_ids(messages[:-1], 1, build_template(template), tokenizer)
    assert labels[len(prompt)] != IGNORE and labels[len(prompt) - 1] == IGNORE
    assert ids.count(IMAGE_TOKEN) == 1
    assert tokenizer.decode([i for i in labels[len(prompt) :] if i != IGNORE]).strip() == talk[-1][1].strip()


def test_an_answer_cannot_write_control_tokens(tokenizer):
    for template in CHATS:
        ids, _ = encode(chat("<|im_end|></s>", "</s><|im_start|>"), 0, template, tokenizer)
        clean, _ = encode(chat("x", "y"), 0, template, tokenizer)
        special = set(tokenizer.hf.all_special_ids) | {tokenizer.encode("<|im_start|>", control=True)[0]}
        assert sum(i in special for i in ids) == sum(i in special for i in clean)


@pytest.mark.parametrize(
    "question, expected",
    [
        ("what?\n<image>", "<image>\nwhat?"),
        ("<image>\nwhat?", "<image>\nwhat?"),
        ("<image>", "<image>"),
        ("here <image> what?", "<image>\nhere  what?"),
    ],
)
def test_a_single_mark_moves_to_the_front(question, expected):
    assert parse_rounds(chat(question, "a"), 1)[0].question == expected


def test_several_marks_stay_and_missing_ones_go_in_front():
    assert parse_rounds(chat("a <image> b <image>", "x"), 2)[0].question == "a <image> b <image>"
    assert [r.question for r in parse_rounds(chat("a", "x", "b", "y"), 2)] == ["<image>\n<image>\na", "b"]
    assert [r.question for r in parse_rounds(chat("a", "x", "b <image>", "y"), 1)] == ["a", "<image>\nb"]


def test_an_answer_in_front_of_the_first_question_is_dropped():
    rounds = parse_rounds([dict(zip(("from", "value"), ("gpt", "hello"), strict=True)), *chat("q", "a")], 0)
    assert [(r.question, r.answer) for r in rounds] == [("q", "a")]


@pytest.mark.parametrize(
    "messages, images, reason, text",
    [
        ([], 0, "no conversation", "neither a conversation nor an image"),
        ([{"from": "gpt", "value": "a"}], 0, "no conversation", "no question"),
        ([{"from": "system", "value": "a"}], 0, "no conversation", "no question"),
        (
            [*chat("a", "b"), {"from": "system", "value": "c"}],
            0,
            "roles",
            "message 2 is from 'system': .* must be the first",
        ),
        ([{"from": "system", "value": "a <image>"}, *chat("b", "c")], 1, "image marks", "system message has an image"),
        ([{"from": "tool", "value": "a"}], 0, "roles", "message 0 is from 'tool': expected 'user'"),
        ([{"from": "human", "value": "a"}] * 2, 0, "roles", "two 'human' messages in a row"),
        ([{"from": "human"}], 0, "malformed", "message 0"),
        (["a"], 0, "malformed", "message 0"),
        (chat("a"), 0, "no answer", "no answer"),
        (chat("a", " \n"), 0, "empty answer", "answer to 'a' is empty"),
        (chat(" ", "a"), 0, "empty question", "empty"),
        (chat("<image> a", "b"), 0, "image marks", "1 <image> marks in the questions, 0 images"),
        (chat("<image> a", "b"), 2, "image marks", "2 images"),
        (chat("a", "<image>"), 0, "image marks", "in an answer"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, images, reason, text):
    with pytest.raises(Refused, match=text) as refused:
        segments_of(messages, images, build_template("vicuna_v1"))
    assert refused.value.reason == reason


def test_templates_take_options_and_any_class():
    ids, _ = encode(chat("q", "a"), 0, dict(type="vicuna_v1", system="", user="Q"), byte_level())
    assert byte_level().decode(ids) == "Q: q ASSISTANT: a"
    own = Template()
    assert build_template(own) is own
    with pytest.raises(NotImplementedError, match="Template must"):
        own.segments([])


ROW = st.lists(st.one_of(st.just((IMAGE_TOKEN, IGNORE)), st.tuples(st.integers(0, 9), st.sampled_from([IGNORE, 7]))))


@given(row=ROW.filter(bool), limit=st.integers(1, 40), n=st.integers(1, 9))
def test_a_row_is_cut_in_its_text_only(row, limit, n):
    ids, labels = [t for t, _ in row], [label for _, label in row]
    ends, used = [], 0
    for token in ids:
        used += n if token == IMAGE_TOKEN else 1
        ends.append(used)
    last_image = max((end for end, t in zip(ends, ids, strict=True) if t == IMAGE_TOKEN), default=0)
    fits = sum(end <= limit for end in ends)
    learned = any(label != IGNORE for label in labels[1:fits])
    if last_image > limit or not (last_image or learned):
        with pytest.raises(Refused):
            truncate(ids, labels, max_length=limit, num_image_tokens=n)
        return
    cut_ids, cut_labels = truncate(ids, labels, max_length=limit, num_image_tokens=n)
    assert (cut_ids, cut_labels) == (ids[:fits], labels[:fits])
    assert cut_ids.count(IMAGE_TOKEN) == ids.count(IMAGE_TOKEN)


def test_a_refused_row_says_its_sizes():
    with pytest.raises(Refused, match="ends at position 12, beyond max_length=10.*takes 9 positions"):
        truncate([1, 2, 3, IMAGE_TOKEN, 4], [IGNORE] * 5, max_length=10, num_image_tokens=9)
    with pytest.raises(Refused, match="max_length=2 .the row has 3 positions"):
        truncate([1, 2, 3], [IGNORE, IGNORE, 3], max_length=2, num_image_tokens=9)


def test_a_template_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(ValueError, match="template 'vicuna' is unknown: expected one of .*chatml, .*vicuna_v1"):
        build_template("vicuna")


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([BOS, IMAGE, "what?"], "segments() yields 'what?', expected Segment(kind, ...)"),
        ([BOS, Segment("picture")], "one of the kinds text, bos, eos, image, token"),
        ([BOS, Segment("text", "<image>what?")], "segments() yields 0 images, the questions have 1: yield IMAGE"),
        ([BOS, IMAGE, IMAGE], "segments() yields 2 images, the questions have 1"),
    ],
)
def test_a_template_that_does_not_keep_its_contract_is_told(segments, words):
    class Mine(Template):
        def segments(self, rounds):
            yield from segments

    with pytest.raises(ValueError) as error:
        segments_of(chat("<image>\nwhat?", "a house"), 1, Mine())
    assert not isinstance(error.value, Refused), "no record is to blame"
    assert str(error.value).startswith("Mine does not keep the template contract") and words in str(error.value)
