"""What a refused record is told, and which keys of records, messages, columns and members a user may leave out."""

import io
import json
import tarfile

import pytest
from data_helpers import FixedTokens, byte_level, chat
from PIL import Image

from asvr.data.collate import Collate
from asvr.data.conversation import require_learned
from asvr.data.llava import LlavaDataset
from asvr.data.parquet import ParquetDataset
from asvr.data.refusals import Refused
from asvr.data.tar import TarDataset

ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=300, num_image_tokens=4)
SAID = chat("what?", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    return folder


def dataset(folder, *records, **kwargs) -> LlavaDataset:
    file = folder / "rows.json"
    file.write_text(json.dumps(records))
    return LlavaDataset(ann_file=str(file), **ITEM | kwargs)


# Nothing to learn -----------------------------------------------------------------------------------------------

NO_TARGET = "and the model has no target for images"


@pytest.mark.parametrize(
    ("record", "template", "max_length", "words"),
    [
        (dict(image="a.png"), "vicuna_v1", 300, f"the record has no conversation, {NO_TARGET}"),
        (dict(image="a.png", conversations=[]), "vicuna_v1", 300, f"the record has no conversation, {NO_TARGET}"),
        (dict(image=["a.png"] * 2), "plain", 300, f"the record has no conversation, {NO_TARGET}"),
        (
            dict(image="a.png", conversations=SAID),
            *("vicuna_v1", 12),
            f"no answer is left within max_length=12, {NO_TARGET}",
        ),
        (dict(image="a.png", conversations=SAID), "plain", 5, f"no answer is left within max_length=5, {NO_TARGET}"),
    ],
)
def test_a_row_without_an_answer_is_told_why(folder, record, template, max_length, words):
    if template == "vicuna_v1" and "conversations" in record:
        template = dict(type="vicuna_v1", system="")
    rows = dataset(folder, record, template=template, max_length=max_length)
    with pytest.raises(Refused, match=f":0: {words}$") as refused:
        Collate(layout=FixedTokens(4), views={}, pad_id=0, shifts=[], max_length=max_length)([rows[0]])
    assert refused.value.reason == "nothing to learn"

    from asvr.data.check import Source, scan

    whole = dataset(folder, record, template=template, max_length=None, on_error="skip")
    source = Source(name="x", dataset=whole, max_length=max_length, num_image_tokens=4, max_pixels=10**6, shifts=())
    found, examples = scan(source, report=io.StringIO(), workers=0)
    assert found.refused == {"nothing to learn": 1} and words in examples["refused", "nothing to learn"][0]


@pytest.mark.parametrize(
    ("record", "max_length", "words"),
    [
        (
            dict(conversations=SAID),
            20,
            r"no answer is left within max_length=20 \(the row has \d+ positions\), and no image",
        ),
        (dict(image="a.png", conversations=[dict(SAID[0])]), 300, "the last question has no answer"),
    ],
)
def test_a_record_without_an_answer_or_an_image_is_told_why(folder, record, max_length, words):
    with pytest.raises(Refused, match=words):
        dataset(folder, record, max_length=max_length)[0]


def test_rows_of_other_datasets_are_told_without_a_limit():
    limits = dict(num_image_tokens=4, shifts=[1])
    with pytest.raises(Refused, match="first token of the row, which no position predicts, and it has no image"):
        require_learned([7], [7], **limits)
    with pytest.raises(Refused, match="the row has no answer, and it has no image"):
        require_learned([1, 5, 6], [-100] * 3, **limits)


# Keys of messages -----------------------------------------------------------------------------------------------

SHAPE = "message is {'from': 'human' or 'gpt', 'value': text}"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"from": "human", "vlaue": "q"}, SAID[1]], f"'vlaue' in message 0; did you mean 'value'? A {SHAPE}"),
        ([SAID[0], {"form": "gpt", "value": "a"}], f"'form' in message 1; did you mean 'from'? A {SHAPE}"),
        ([SAID[0], {"From": "gpt", "value": "a"}], f"'From' in message 1; did you mean 'from'? A {SHAPE}"),
        ([{"from": "human", "text": "q"}], f"'text' in message 0; did you mean 'value'? A {SHAPE}"),
        ([{"human": "q", "gpt": "a"}], f"'human' in message 0; a {SHAPE}"),
        ([dict(SAID[0], content="b"), SAID[1]], "'content' in message 0; give the dataset ignore=['content'] to"),
        ([SAID[0], dict(SAID[1], valeu="b")], "'valeu' in message 1; give the dataset ignore=['valeu'] to"),
    ],
)
def test_a_key_of_a_message_is_told_with_what_is_expected(folder, messages, words):
    with pytest.raises(Refused) as refused:
        dataset(folder, dict(image="a.png", conversations=messages))[0]
    assert f"record 0: unknown key {words}" in str(refused.value) and "has 'from' and 'value'" not in str(refused.value)


def test_a_key_of_a_prompts_message_is_told_with_what_is_expected():
    from asvr.data.prompts import check_prompt

    with pytest.raises(ValueError, match="prompt 0: unknown key 'text' in message 0; did you mean 'value'"):
        check_prompt(0, dict(images=[], messages=[dict(role="user", text="q")]))
    with pytest.raises(ValueError, match="unknown key 'name' in message 0; expected 'from' and 'value' alone"):
        check_prompt(0, dict(images=[], messages=[dict(SAID[0], name="A")]))


# As ShareGPT's and LLaVA's files have them beside what is said.
BOOKKEEPING = dict(
    name="Alice", turn=1, type="text", end_of_turn=True, weight=1, recipient="all", create_time=17.5, annotations=["x"]
)


def _json(folder, messages, ignore):
    return dataset(folder, dict(image="a.png", conversations=messages), ignore=ignore)


def _tar(folder, messages, ignore):
    return shard(folder, {"k.png": None, "k.json": json.dumps(dict(conversations=messages)).encode()}, ignore=ignore)


def _parquet(folder, messages, ignore):
    pytest.importorskip("pyarrow")
    return table(folder, dict(image=["a.png"], conversations=[messages]), ignore=ignore)


def _parquet_text(folder, messages, ignore):
    pytest.importorskip("pyarrow")
    return table(folder, dict(image=["a.png"], conversations=[json.dumps(messages)]), ignore=ignore)


@pytest.mark.parametrize("make", [_json, _tar, _parquet, _parquet_text])
@pytest.mark.parametrize("key", BOOKKEEPING)
def test_any_key_of_a_message_can_be_ignored(folder, make, key):
    messages = [dict(message, **{key: BOOKKEEPING[key]}) for message in SAID]
    if key != "weight":
        with pytest.raises(Refused, match=rf"unknown key '{key}' in message 0; give the dataset ignore=\['{key}'\]"):
            make(folder, messages, ())[0]
    row, plain = make(folder, messages, [key])[0], make(folder, SAID, ())[0]
    assert (row["input_ids"], row["labels"]) == (plain["input_ids"], plain["labels"])


@pytest.mark.parametrize("key", ["from", "value", "image", "conversations"])
def test_what_is_read_cannot_be_ignored(folder, key):
    with pytest.raises(ValueError, match=rf"LlavaDataset: ignore names '{key}', which is read"):
        dataset(folder, dict(image="a.png", conversations=SAID), ignore=[key])


# Columns and members --------------------------------------------------------------------------------------------


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "png")
    return file.getvalue()


def table(folder, given: dict, **kwargs) -> ParquetDataset:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(given), folder / "x.parquet")
    return ParquetDataset(files=str(folder / "x.parquet"), **ITEM | kwargs)


def shard(folder, members: dict, **kwargs) -> TarDataset:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in members.items():
            data = png() if data is None else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return TarDataset(files=str(folder / "x.tar"), **ITEM | kwargs)


# One row each, with the columns that the Hub's copies of these data sets have.
VQA_V2 = dict(
    question_type=["what is"],
    multiple_choice_answer=["red"],
    answers=[[dict(answer="red", answer_confidence="yes", answer_id=1)] * 3],
    image_id=[458752],
    answer_type=["other"],
    question_id=[458752000],
    question=["what color is it?"],
    image=[dict(bytes=png(), path=None)],
)
TEXT_VQA = dict(
    image_id=["0054c91397f2fe05"],
    question_id=[0],
    question=["what is the brand?"],
    question_tokens=[["what", "is", "the", "brand"]],
    image=[dict(bytes=png(), path="a.png")],
    image_width=[1024],
    image_height=[730],
    flickr_original_url=["https://x.org/a.jpg"],
    answers=[["nokia"] * 10],
    image_classes=[["Telephone"]],
    set_name=["train"],
    ocr_tokens=[["MIA", "NOKIA"]],
)
CHOICES = dict(question=["which?"], answer=["A"], choices=[["red", "blue"]], image=[dict(bytes=png(), path=None)])


@pytest.mark.parametrize(
    ("columns", "named", "answer"),
    [
        (VQA_V2, dict(answer="multiple_choice_answer"), "red"),
        (TEXT_VQA | dict(answer=["nokia"]), {}, "nokia"),
        (CHOICES, {}, "A"),
    ],
    ids=["VQAv2", "TextVQA", "choices"],
)
def test_tables_of_questions_are_read_with_their_answer(tmp_path, columns, named, answer):
    pytest.importorskip("pyarrow")
    rows = table(tmp_path, columns, columns=named)
    assert rows.record(0)["conversations"][1]["value"] == answer and len(rows[0]["images"]) == 1
    assert table(tmp_path, columns, columns=named, ignore=["answers", "ocr_tokens"])[0]["labels"] == rows[0]["labels"]


def test_a_column_that_is_read_cannot_be_ignored(tmp_path):
    pytest.importorskip("pyarrow")
    words = r"ignore names the column 'answer', which is read: columns=dict\(answer=None\) leaves it out"
    with pytest.raises(ValueError, match=words):
        table(tmp_path, CHOICES, ignore=["answer"])


@pytest.mark.parametrize("columns", [VQA_V2, TEXT_VQA], ids=["VQAv2", "TextVQA"])
def test_a_table_without_one_answer_says_how_to_name_it(tmp_path, columns):
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="has a column for 'question', but none for 'answer': name it in `columns`"):
        table(tmp_path, columns)
    if columns is TEXT_VQA:
        with pytest.raises(Refused, match="record 0: message 1 is .*: expected {'from': role, 'value': text}"):
            table(tmp_path, columns, columns=dict(answer="answers"))[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(pictures=[[png()]]), "unknown column 'pictures'; did you mean 'image'?"),
        (dict(dialog=[[dict(role="user", content="q")]]), "unknown column 'dialog'; did you mean 'conversations'?"),
        (dict(caption=["a wall"]), "unknown column 'caption'; did you mean 'conversations'?"),
        (dict(system=["Answer in French."]), r"unknown column 'system'; give the dataset ignore=\['system'\]"),
        (dict(video=[b"mp4"]), r"unknown column 'video'; give the dataset ignore=\['video'\]"),
        (dict(weight=[0.5]), r"unknown column 'weight'; give the dataset ignore=\['weight'\]"),
    ],
)
def test_a_column_that_would_be_lost_is_refused_and_can_be_ignored(tmp_path, more, words):
    pytest.importorskip("pyarrow")
    (key,) = more
    text = dict(question=["what?"], answer=["red"])
    columns = (dict(image=["a.png"]) if key in ("dialog", "caption") else text) | more
    if key in ("video", "weight", "system"):
        columns |= dict(image=["a.png"])
    with pytest.raises(ValueError, match=f"x.parquet: {words}.*, or name it in `columns`") as refused:
        table(tmp_path, columns)
    assert "\n" not in str(refused.value)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert table(tmp_path, columns, ignore=[key])[0]["sample_id"].endswith("x.parquet:0")


RECORD = json.dumps(dict(conversations=SAID)).encode()
DESCRIBED = {"metadata.json": b'{"source": "x"}', "__key__": b"k", "__url__": b"x.tar", "cls": b"7", "width": b"8"}


@pytest.mark.parametrize("field", DESCRIBED)
def test_members_that_describe_a_sample_are_left_alone(tmp_path, field):
    rows = shard(tmp_path, {"k.png": None, "k.json": RECORD, f"k.{field}": DESCRIBED[field]})
    assert len(rows) == 1 and rows.record(0)["conversations"] == SAID and len(rows[0]["images"]) == 1
    first = shard(tmp_path, {f"k.{field}": DESCRIBED[field], "k.json": RECORD, "k.png": None})
    assert first[0]["labels"] == rows[0]["labels"]


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("mp4", r"give the dataset ignore=\['mp4'\] to train without it"),
        ("caption", r"give the dataset ignore=\['caption'\] to train without it"),
        ("messages.json", r"give the dataset ignore=\['messages.json'\] to train without it"),
        ("npy", r"give the dataset ignore=\['npy'\] to train without it"),
    ],
)
def test_a_member_that_would_be_lost_is_refused_and_can_be_ignored(tmp_path, field, hint):
    members = {"k.png": None, "k.json": RECORD, f"k.{field}": b"x"}
    with pytest.raises(Refused, match=rf"x.tar, record 0 \(k\): unknown member '{field}'; {hint}") as refused:
        shard(tmp_path, members)[0]
    assert refused.value.reason == "unknown key"
    plain = shard(tmp_path, {"k.png": None, "k.json": RECORD})[0]["labels"]
    assert shard(tmp_path, members, ignore=[field])[0]["labels"] == plain
