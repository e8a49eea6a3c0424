import json
import os
import pickle

import numpy as np
import pytest
from data_helpers import FixedTokens, byte_level, chat
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from asvr.data import llava
from asvr.data.batch import IMAGE_TOKEN
from asvr.data.collate import Collate
from asvr.data.llava import LlavaDataset, index_records
from asvr.data.refusals import Refusal, Refused
from asvr.data.transforms import ImageTransform
from asvr.registry import DATASETS

VALUE = st.recursive(
    st.none() | st.integers() | st.text(max_size=8), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=4
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=4), VALUE, max_size=3), max_size=4)


@pytest.fixture
def folder(tmp_path):
    for name, size in (("a.png", (8, 6)), ("sub/b.png", (6, 8))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, "red").save(tmp_path / name)
    return tmp_path


def write(folder, records, name="data.jsonl"):
    path = folder / name
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n" if name.endswith("l") else "[" + ",\n".join(lines) + "]")
    return str(path)


def build(ann_file, **kwargs):
    defaults = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4, on_error="raise")
    return DATASETS.build(dict(type="LlavaDataset", ann_file=ann_file), default_args=defaults | kwargs)


GOOD = [
    dict(image="a.png", conversations=chat("<image>\nwhat?", "red")),
    dict(image=["a.png", "sub/b.png"], conversations=chat("<image> and <image>?", "two")),
    dict(conversations=chat("hello?", "hi")),
    dict(image="sub/b.png"),
    dict(image="a.png", conversations=[]),
]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_records_of_every_kind(folder, name):
    dataset = build(write(folder, GOOD, name))
    items = [dataset[i] for i in range(len(dataset))]
    assert [item["input_ids"].count(IMAGE_TOKEN) for item in items] == [1, 2, 0, 1, 1]
    assert items[1]["images"] == [folder / "a.png", folder / "sub/b.png"]
    assert items[1]["image_keys"] == [str(folder / "a.png"), str(folder / "sub/b.png")]
    assert [key for key, _ in dataset.images()] == items[1]["image_keys"]
    assert items[2]["sample_id"] == f"{folder / name}:2"
    assert list(dataset.texts()) == ["\nwhat?", "red", " and ?", "two", "hello?", "hi"]
    assert not dataset.refusals


@settings(max_examples=25, deadline=None)
@given(records=RECORDS, indent=st.sampled_from([None, 2]), ascii_only=st.booleans(), block=st.integers(1, 40))
def test_a_list_is_indexed_whatever_the_block_size(tmp_path_factory, records, indent, ascii_only, block):
    path = tmp_path_factory.mktemp("list") / "x.json"
    path.write_bytes(json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "BLOCK", block)
        spans = index_records(str(path))
    data = path.read_bytes()
    assert [json.loads(data[a:b]) for a, b in spans] == records


@settings(max_examples=25, deadline=None)
@given(records=RECORDS, end=st.sampled_from(["", "\n", "\n\n"]), between=st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_lines_are_indexed_with_blank_ones_left_out(tmp_path_factory, records, end, between):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes((between.join(json.dumps(record) for record in records) + end).encode())
    if not records:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "BLOCK", 7)
        spans = index_records(str(path))
    data = path.read_bytes()
    assert [json.loads(data[a:b]) for a, b in spans] == records and spans.dtype == np.int64


BAD = [
    (dict(image="no.png", conversations=chat("<image>", "a")), "missing image", "no.png is missing"),
    (dict(image="../a.png", conversations=chat("<image>", "a")), "outside image_folder", "lies outside"),
    (dict(image="/etc/a.png", conversations=chat("<image>", "a")), "outside image_folder", "lies outside"),
    (dict(image=3, conversations=chat("<image>", "a")), "malformed", "expected a file name or a list"),
    (dict(image="a.png", conversations="hello"), "malformed", "expected a list of messages"),
    (dict(image="a.png", conversations=chat("q", "a" * 9)), "image beyond max_length", "max_length=30"),
    (dict(id=3), "no conversation", "neither a conversation nor an image"),
    ("{not json}", "malformed", "not JSON"),
    ("[1]", "malformed", "not a JSON object"),
]


@pytest.mark.parametrize("record, reason, text", BAD)
def test_a_refusal_names_file_index_and_reason(folder, record, reason, text):
    ann_file = write(folder, [GOOD[2], record])
    length = 30 if "max_length" in reason else 400
    with pytest.raises(Refused, match=f"{ann_file}, record 1: .*{text}") as refused:
        build(ann_file, max_length=length)[1]
    assert refused.value.reason == reason
    dataset = build(ann_file, max_length=length, on_error="skip")
    refusal = dataset[1]
    assert (refusal.sample_id, refusal.reason) == (f"{ann_file}:1", reason) and ann_file in refusal.message
    assert dataset.refusals == {reason: 1}


def test_refusals_are_counted_by_reason(folder):
    ann_file = write(folder, [GOOD[0], *(record for record, reason, _ in BAD if "max_length" not in reason)])
    dataset = build(ann_file, on_error="skip")
    assert [i for i in range(len(dataset)) if not isinstance(dataset[i], Refusal)] == [0]
    assert dataset.refusals == {
        "missing image": 1,
        "outside image_folder": 2,
        "malformed": 4,
        "no conversation": 1,
    }


def test_the_fingerprint_follows_the_records(folder):
    first, same, other = (
        build(write(folder, records, name)).fingerprint()
        for records, name in ((GOOD, "a.json"), (GOOD, "b.json"), ([*GOOD[:-1], GOOD[0]], "c.json"))
    )
    assert first == same != other


def test_the_limit_counts_each_picture_in_full(folder):
    ann_file = write(folder, [dict(image="a.png", conversations=chat("<image>\nwhat?", "red " * 50))])
    whole = build(ann_file)[0]["input_ids"]
    cut = build(ann_file, max_length=len(whole) - 10)[0]["input_ids"]
    assert cut == whole[: len(whole) - 10 - 3]


@pytest.mark.parametrize(
    "text, message",
    [("", "no record"), ("[]", "no record"), ("<a>", "expected '\\['"), ('[{"a": 1}, {"b"', "record 1")],
)
def test_a_file_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        LlavaDataset(ann_file=str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="is missing"):
        LlavaDataset(ann_file=str(tmp_path / "y.json"))


def test_options_are_checked(folder):
    ann_file = write(folder, GOOD)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        build(ann_file, on_error="ignore")
    with pytest.raises(ValueError, match="num_image_tokens"):
        build(ann_file, num_image_tokens=None)
    with pytest.raises(ValueError, match="tokenizer= and template="):
        LlavaDataset(ann_file=ann_file)[0]


def test_a_question_ends_where_the_answer_begins(folder):
    dataset = build(write(folder, GOOD))
    row, asked = dataset[0], dataset.question(0)
    assert asked["input_ids"] == row["input_ids"][: len(asked["input_ids"])]
    assert (asked["question"], asked["answer"]) == ("what?", "red")


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_hand_over_what_they_refused(folder, workers):
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
    records = [GOOD[0], dict(image="broken.png"), dict(image="no.png"), GOOD[1], GOOD[2]]
    dataset = build(write(folder, records), on_error="skip")
    view = ImageTransform(size=(8, 8))
    collate = Collate(layout=FixedTokens(4), views=dict(encoder=view), pad_id=0, on_error="skip")
    batch, last = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate)
    assert [refusal.reason for refusal in batch.refusals] == ["missing image", "unreadable image"]
    assert str(folder / "broken.png") in batch.refusals[1].message
    assert [sample.rsplit(":")[-1] for sample in batch.sample_ids] == ["0", "3"]
    assert batch.pixels["encoder"].shape == (3, 3, 8, 8) and not last.refusals


def test_a_dataset_goes_to_a_worker_as_it_is(folder):
    dataset = build(write(folder, GOOD))
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]


def test_names_lead_to_the_image_folder(folder):
    ann_file = write(folder, [dict(image="b.png"), dict(image="../sub/b.png")])
    dataset = LlavaDataset(ann_file=ann_file, image_folder=os.path.join(folder, "sub"))
    assert [key for key, _ in dataset.images()] == [str(folder / "sub/b.png")]
    assert isinstance(build(ann_file, on_error="skip")[0], Refusal)


def test_pictures_and_texts_follow_the_policy(folder):
    ann_file = write(folder, [GOOD[0], "{not json}", dict(image="../x.png"), GOOD[2]])
    dataset = build(ann_file, on_error="skip")
    assert [key for key, _ in dataset.images()] == [str(folder / "a.png")]
    assert list(dataset.texts()) == ["\nwhat?", "red", "hello?", "hi"]
    assert "hello? ASSISTANT:" in "".join(dataset.texts("vicuna_v1"))
    for read in (LlavaDataset(ann_file=ann_file).images, LlavaDataset(ann_file=ann_file).texts):
        with pytest.raises(Refused, match=f"{ann_file}, record 1: the record is not JSON"):
            list(read())


def test_a_method_of_the_old_name_is_told_and_not_passed_over(folder):
    class Own(LlavaDataset):
        def picture(self, name):
            return super().image(f"other/{name}")

    with pytest.raises(ValueError, match=r"Own: its method picture\(name\) is now called image\(name\): rename it"):
        Own(ann_file=str(folder / "rows.json"))
