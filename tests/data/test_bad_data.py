"""Bad records are refused in words that name file and record; nothing crashes, nothing wrong is accepted silently."""

import codecs
import json
import os
import time

import pytest
from bad_images import bomb, encoded, write
from data_helpers import CHATML, TOKENIZERS, FixedTokens, byte_level, chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.collate import Collate
from asvr.data.conversation import encode_segments, segments_of
from asvr.data.llava import LlavaDataset
from asvr.data.records import ConversationDataset
from asvr.data.refusals import Refusal, Refused
from asvr.data.strict_json import MAX_RECORD_BYTES, parse_record
from asvr.data.templates import build_template
from asvr.data.transforms import ImageTransform

TEMPLATES = ("plain", "vicuna_v1", "llama_2", "mistral", "chatml")
GOOD = json.dumps(dict(image="a.png", conversations=chat("what?", "red")))
VIEW = ImageTransform(size=(4, 4))


def talk(question="what?", answer="red", **record) -> str:
    return json.dumps(dict(image="a.png", conversations=chat(question, answer)) | record)


# What a line holds, the reason that is counted, and what the message says.
BAD = {
    "malformed": ("{not json}", "malformed", "not JSON"),
    "cut off": (GOOD[:-9], "malformed", "not JSON"),
    "two in a line": (GOOD + GOOD, "malformed", "Extra data"),
    "a list": ("[1]", "malformed", "not a JSON object"),
    "a number": ("7", "malformed", "not a JSON object"),
    "NaN": (talk(score=float("nan")), "malformed", "NaN is not JSON"),
    "Infinity": (talk(score=-float("inf")), "malformed", "-Infinity is not JSON"),
    "a key twice": (GOOD[:-1] + ', "conversations": []}', "malformed", "'conversations' stands twice"),
    "deep": (f'{{"image": {"[" * 100_000}{"]" * 100_000}}}', "malformed", "nested too deeply"),
    "deep, but parsed": (f'{{"image": {"[" * 300}{"]" * 300}}}', "malformed", "expected a file name or a list"),
    "huge integer": (f'{{"image": {"9" * 5000}}}', "malformed", "not JSON"),
    "large integer": (f'{{"image": {"9" * 4000}}}', "malformed", "expected a file name or a list"),
    "NUL": (GOOD.replace("what", "wh\0at"), "malformed", "not JSON"),
    "no UTF-8": (GOOD.encode().replace(b"what", b"wh\xffat"), "malformed", "not JSON in UTF-8"),
    "a surrogate in UTF-8": (GOOD.encode().replace(b"what", b"wh\xed\xa0\x80at"), "malformed", "not JSON in UTF-8"),
    "half a character": (talk("wh\ud800at?"), "malformed", "half a character"),
    "the other half": (talk(answer="\udc00"), "malformed", "half a character"),
    "half a name": (talk(image="a\udcff.png"), "malformed", "is not a file name"),
    "NUL in a name": (talk(image="a\0.png"), "malformed", "is not a file name"),
    "an endless name": (talk(image="a" * 10_000), "malformed", "is not a file name"),
    "a long name": (talk(image="a" * 300), "unreadable image", "name too long"),
    "a name that is none": (talk(image=float(3)), "malformed", "expected a file name or a list"),
    "an empty name": (talk(image=""), "malformed", "expected a file name or a list"),
    "names in names": (talk(image=[["a.png"]]), "malformed", "expected a file name or a list"),
    "no image": (talk(image="no.png"), "missing image", "no.png is missing"),
    "a folder": (talk(image="folder.png"), "unreadable image", "no regular file"),
    "a pipe": (talk(image="pipe.png"), "unreadable image", "no regular file"),
    "climbing": (talk(image="../a.png"), "outside image_folder", "lies outside"),
    "climbing inside": (talk(image="sub/../../a.png"), "outside image_folder", "lies outside"),
    "absolute": (talk(image="/etc/passwd"), "outside image_folder", "lies outside"),
    "the folder itself": (talk(image="."), "unreadable image", "no regular file"),
    "no list": (talk(conversations="hello"), "malformed", "expected a list of messages"),
    "a false list": (talk(conversations=False), "malformed", "expected a list of messages"),
    "an object": (talk(conversations={}), "malformed", "expected a list of messages"),
    "no message": (talk(conversations=["hi", "ho"]), "malformed", "message 0 is .*: expected"),
    "no text": (talk(conversations=[{"from": "human", "value": ["a"]}]), "malformed", "message 0 is .*: expected"),
    "unknown role": (talk(conversations=[{"from": "tool", "value": "a"}]), "roles", "from 'tool'"),
    "no role": (talk(conversations=[{"value": "a"}]), "roles", "from None"),
    "a role that is none": (talk(conversations=[{"from": ["human"], "value": "a"}]), "roles", "from \\['human'\\]"),
    "twice the same": (talk(conversations=chat("a", "b")[:1] * 2), "roles", "two 'human' messages"),
    "no question": (talk(conversations=chat("a", "b")[1:]), "no conversation", "no question"),
    "no answer": (talk(conversations=chat("a")), "no answer", "no answer"),
    "empty question": (talk(" \n"), "empty question", "a question is empty"),
    "empty answer": (talk(answer="\t"), "empty answer", "is empty"),
    "too many marks": (talk("<image><image>what?"), "image marks", "2 <image> marks .* 1 images"),
    "too many images": (talk("<image>what?", image=["a.png"] * 3), "image marks", "1 <image> marks .* 3 images"),
    "marks without images": (talk("<image>what?", image=None), "image marks", "1 <image> marks .* 0 images"),
    "a mark in an answer": (talk("<image>what?", "an <image>"), "image marks", "in an answer"),
    "nothing": ("{}", "no conversation", "neither a conversation nor an image"),
    "too large": (talk("a" * MAX_RECORD_BYTES), "too large a record", "bytes, the limit is"),
    "100 MB": (talk("a" * 100_000_000), "too large a record", "100,000,\\d+ bytes, the limit is"),
}
# What only the collate function sees, which opens the images.
BAD_PICTURES = {
    "empty.png": "unreadable image",
    "cut.jpg": "unreadable image",
    "text.png": "unreadable image",
    "bomb.png": "too large an image",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write(folder, "a.png", encoded("png"))
    (folder / "folder.png").mkdir()
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")
    write(folder, "empty.png", b"")
    write(folder, "cut.jpg", encoded("jpg")[:-100])
    write(folder, "text.png", b"no image")
    write(folder, "bomb.png", bomb(30_000, 20_000))
    return folder


def build(folder, lines, name="data.jsonl", **kwargs) -> LlavaDataset:
    path = folder / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    defaults = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4)
    return LlavaDataset(ann_file=str(path), **defaults | kwargs)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_refused_with_file_and_record(folder, kind):
    line, reason, text = BAD[kind]
    begin = time.perf_counter()
    dataset = build(folder, [GOOD, line, GOOD])
    with pytest.raises(Refused, match=f"{dataset.source}, record 1: .*{text}") as error:
        dataset[1]
    assert error.value.reason == reason and len(str(error.value)) < 1000 and str(error.value).isprintable()
    dataset.on_error = "skip"
    refusal = dataset[1]
    assert (refusal.reason, refusal.sample_id) == (reason, f"{dataset.source}:1")
    assert dataset[0]["input_ids"] == dataset[2]["input_ids"]
    for read in (dataset.texts, dataset.images, dataset.fingerprint):
        assert list(read())
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_the_bad_ones_and_no_other_sample_moves(folder, workers):
    """Batch by batch the good records stand where they would stand, in workers too, and every refusal is told."""
    kinds = [kind for kind in BAD if kind != "100 MB"]
    bad = [(BAD[kind][0], BAD[kind][1]) for kind in kinds]
    bad += [(json.dumps(dict(image=name)), reason) for name, reason in BAD_PICTURES.items()]
    lines = [line for record, _ in bad for line in (GOOD, record)]
    dataset = build(folder, lines, on_error="skip")
    collate = Collate(layout=FixedTokens(4), views=dict(encoder=VIEW), pad_id=0, on_error="skip")
    batches = list(DataLoader(dataset, batch_size=8, num_workers=workers, collate_fn=collate))
    numbers = [[int(sample.rpartition(":")[2]) for sample in batch.sample_ids] for batch in batches]
    assert numbers == [list(range(begin, min(begin + 8, len(lines)), 2)) for begin in range(0, len(lines), 8)]
    told = {refusal.sample_id: refusal.reason for batch in batches for refusal in batch.refusals}
    assert told == {f"{dataset.source}:{2 * i + 1}": reason for i, (_, reason) in enumerate(bad)}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", [*BAD_PICTURES, "no.png"])
def test_a_bad_picture_stops_training_with_file_and_record(folder, name, workers):
    dataset = build(folder, [GOOD, json.dumps(dict(image=name))])
    collate = Collate(layout=FixedTokens(4), views=dict(encoder=VIEW), pad_id=0)
    with pytest.raises(Refused, match=f"(?s){dataset.source}(:|, record )1: the image {folder / name} "):
        list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate))


def test_symbolic_links_are_followed(folder, tmp_path):
    """Who fills the image folder decides where its links lead; a record alone cannot lead out."""
    (tmp_path / "link").symlink_to(folder)
    dataset = build(tmp_path, [talk(image="link/a.png"), talk(image="link/../a.png")])
    assert dataset[0]["images"] == [tmp_path / "link/a.png"]
    with pytest.raises(Refused, match="a.png is missing"):
        dataset[1]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b"", b" \n", codecs.BOM_UTF8 + b" "])
def test_a_byte_order_mark_is_no_part_of_a_record(folder, mark):
    lines = build(folder, [mark + GOOD.encode(), codecs.BOM_UTF8 + GOOD.encode()])
    listed = build(folder, [mark + b"[" + GOOD.encode() + b"]"], "data.json")
    assert lines[0]["input_ids"] == lines[1]["input_ids"] == listed[0]["input_ids"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", [f"{GOOD}\n{GOOD}\n", f"[{GOOD}]"])
def test_another_encoding_is_told(folder, encoding, text):
    with pytest.raises(ValueError, match="data.json.*UTF-8"):
        build(folder, [text.encode(encoding)], "data.json")


@pytest.mark.parametrize(
    "text, message",
    [
        (f"[{GOOD}, {{]", "record 1: the JSON list is damaged near byte"),
        (f"[{GOOD}, {'[' * 100_000}{']' * 100_000}]", "record 1: the JSON list is damaged"),
        (f"[{GOOD}, {'9' * 5000}]", "record 1: the JSON list is damaged"),
        (f"[{GOOD}", "record 1: the JSON list is damaged"),
        (f"[{GOOD}][{GOOD}]", "after the end of the JSON list"),
        (f"[{GOOD}] x", "after the end of the JSON list"),
        (f"[{GOOD}, ".encode() + b"\xff]", "record 0 or later: not UTF-8"),
        (f'[{GOOD}, {{"a": "' + "b" * 20_000_000, "record 1: the JSON list is damaged"),
    ],
)
def test_a_list_that_breaks_is_told_with_its_record(folder, text, message):
    with pytest.raises(ValueError, match=f"broken.json.*{message}"):
        build(folder, [text], "broken.json")


def test_a_category_that_is_no_text_is_refused(folder):
    dataset = build(folder, [talk(category=["a"]), talk(category="a")])
    with pytest.raises(Refused, match="record 0: 'category' is .*: expected a text"):
        dataset.question(0)
    assert dataset.question(1)["answer"] == "red"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_control_tokens_in_a_text_are_letters(template, tokenizer):
    tokenizer = TOKENIZERS[tokenizer]()
    special = {*tokenizer.hf.all_special_tokens, *CHATML}
    written = "".join(special) + " [INST] <<SYS>> USER: <unk> <pad> "
    dirty, labels = encode(template, f"<image>\n{written}", written, tokenizer)
    clean, _ = encode(template, "<image>\nx", "y", tokenizer)
    ids = {tokenizer.hf.convert_tokens_to_ids(token) for token in special} | {IMAGE_TOKEN}
    assert [i for i in dirty if i in ids] == [i for i in clean if i in ids]
    assert written.strip() in tokenizer.decode([label for label in labels if label != IGNORE])


def encode(template, question, answer, tokenizer):
    return encode_segments(segments_of(chat(question, answer), 1, build_template(template)), tokenizer)


class Records(ConversationDataset):
    """Records of any kind, as a dataset of one's own may hold."""

    source = "mine"

    def __init__(self, records, **kwargs):
        super().__init__(**kwargs)
        self.records = records

    def __len__(self):
        return len(self.records)

    def record(self, i):
        return self.records[i]

    def image(self, name):
        return name, name


WORDS = st.one_of(
    st.sampled_from(["human", "gpt", "<image>", "</s>", "<s>", "<|im_end|>", "\ud800", "\0", "", " ", "\n", "a.png"]),
    st.text(max_size=12),
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.sampled_from(["from", "value"]), inner),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt"]) | VALUE, "value": st.lists(WORDS, max_size=5).map("".join) | VALUE}
)
# Mostly like a record, so that some of everything is reached; now and then anything at all.
RECORD = st.one_of(
    st.fixed_dictionaries(
        {},
        optional=dict(
            image=st.none() | st.just("a.png") | st.lists(st.just("a.png"), max_size=3) | VALUE,
            conversations=st.lists(MESSAGE, max_size=6) | VALUE,
        ),
    ),
    st.lists(st.lists(WORDS, min_size=1, max_size=4).map("".join), min_size=2, max_size=6).map(
        lambda texts: dict(conversations=chat(*texts))
    ),
    VALUE,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=RECORD, template=st.sampled_from(TEMPLATES), tokenizer=st.sampled_from(list(TOKENIZERS)))
def test_any_record_is_an_item_or_refused(folder, record, template, tokenizer):
    tokenizer = TOKENIZERS[tokenizer]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        own = dict(tokenizer=tokenizer, template=template, max_length=60, num_image_tokens=3, on_error="skip")
        dataset = Records([record], **own)
        item, question = dataset[0], dataset.question(0)
    if isinstance(item, Refusal):
        assert item.reason and item.message.startswith("mine, record 0: ") and len(item.message) < 1000
        return
    ids, labels = item["input_ids"], item["labels"]
    assert len(ids) == len(labels) and ids.count(IMAGE_TOKEN) == len(item["images"])
    assert all(label in (IGNORE, token) for label, token in zip(labels, ids, strict=True))
    assert len(ids) + 2 * ids.count(IMAGE_TOKEN) <= 60
    rounds = sum(message["from"] == "human" for message in record.get("conversations") or [])
    control = set(tokenizer.hf.all_special_ids) - {tokenizer.hf.unk_token_id}
    control |= {tokenizer.encode(token, control=True)[0] for token in CHATML}
    assert sum(token in control for token in ids) <= most_control_tokens(template, rounds)
    if not isinstance(question, Refusal):
        shared = min(len(question["input_ids"]), len(ids))
        assert question["input_ids"][:shared] == ids[:shared]


def most_control_tokens(template: str, rounds: int) -> int:
    """What a template itself writes: BOS, and what begins and ends turns."""
    return (
        1 + dict(plain=0, vicuna_v1=1, llama_2=2, mistral=1, chatml=4)[template] * rounds + 2 * (template == "chatml")
    )


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=60) | VALUE.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_or_refused(text):
    try:
        value = parse_record(text)
    except Refused as error:
        assert error.reason in ("malformed", "too large a record")
    else:
        assert json.loads(json.dumps(value, allow_nan=False)) == value
