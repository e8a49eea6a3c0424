"""Parquet files: rows in LLaVA's form or by their columns' names, images in the file or beside it."""

import io
import json

import pytest
from data_helpers import byte_level
from PIL import Image

from asvr.caches.codes import hash_images
from asvr.data import file_index
from asvr.data.images import open_image
from asvr.data.parquet import ParquetDataset
from asvr.data.refusals import Refused
from asvr.registry import DATASETS

datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install -e '.[data]')")

ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def png(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "png")
    return file.getvalue()


def chat(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(path, columns: dict) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def build(files, **kwargs) -> ParquetDataset:
    return DATASETS.build(dict(type="ParquetDataset", files=files, **kwargs), default_args=ITEM)


def colors(dataset) -> list[list]:
    return [[open_image(source).getpixel((0, 0)) for source in item["images"]] for item in dataset]


RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)
CHATS = [chat("<image>\nwhat?", "red"), chat("hello?", "hi"), None]


@pytest.mark.parametrize("form", ["bytes", "struct", "list of bytes", "list of structs", "path", "mixed structs"])
def test_pictures_of_every_form(tmp_path, form):
    (tmp_path / "red.png").write_bytes(png("red"))
    held = {"bytes": png("red"), "path": "elsewhere/red.png"}
    beside = {"bytes": None, "path": "red.png"}
    blue = {"bytes": png("blue"), "path": None}
    images = {
        "bytes": [png("red"), None, png("blue")],
        "struct": [held, None, blue],
        "list of bytes": [[png("red")], [], [png("blue")]],
        "list of structs": [[held], None, [blue]],
        "path": ["red.png", None, str(tmp_path / "red.png")],
        "mixed structs": [beside, None, blue],
    }[form]
    dataset = build(write(tmp_path / "x.parquet", dict(image=images, conversations=CHATS, other=[1, 2, 3])))
    last = RED if form == "path" else BLUE
    assert colors(dataset) == [[RED], [], [last]] and colors(dataset)[::-1] == [[last], [], [RED]]
    assert list(dataset.texts()) == ["\nwhat?", "red", "hello?", "hi"]
    assert [key for key, _ in dataset.images()] == list(
        dict.fromkeys(key for item in dataset for key in item["image_keys"])
    )
    assert "other" not in dataset.rows.column_names


def test_what_datasets_writes_is_read(tmp_path):
    features = datasets.Features(
        images=datasets.List(datasets.Image()),
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        category=datasets.Value("string"),
    )
    rows = [
        dict(
            images=[Image.new("RGB", (4, 4), c) for c in ("red", "blue")], question="which?", answer="two", category="n"
        ),
        dict(images=[], question="how?", answer="so", category=None),
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "x.parquet")
    columns = dict(image="images", question="question", answer="answer", category="category")
    dataset = build(str(tmp_path / "x.parquet"), columns=columns)
    assert colors(dataset) == [[RED, BLUE], []]
    assert dataset.question(1)["answer"] == "so" and dataset.record(0)["category"] == "n"
    assert dataset.record(1) == dict(conversations=chat("how?", "so"))


def test_files_stand_in_the_order_they_are_named(tmp_path):
    a, b = (
        write(
            tmp_path / f"{name}.parquet", dict(conversations=[json.dumps(chat(f"{name}{i}?", "x")) for i in range(n)])
        )
        for name, n in (("a", 2), ("b", 3))
    )
    assert list(build(str(tmp_path / "*.parquet")).texts())[::2] == ["a0?", "a1?", "b0?", "b1?", "b2?"]
    dataset = build([b, a])
    assert list(dataset.texts())[::2] == ["b0?", "b1?", "b2?", "a0?", "a1?"]
    assert [item["sample_id"] for item in dataset] == [f"{b}:0", f"{b}:1", f"{b}:2", f"{a}:0", f"{a}:1"]
    assert dataset.fingerprint() == build([b, a]).fingerprint() != build([a, b]).fingerprint()


def test_a_changed_file_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(file_index, "KEPT_FROM", 0)
    path = write(tmp_path / "x.parquet", dict(question=["a?", "b?"], answer=["c", "d"]))
    before = build(path)
    write(tmp_path / "x.parquet", dict(question=["a?", "e?"], answer=["c", "d"]))
    after = build(path)
    assert list(after.texts()) == ["a?", "c", "e?", "d"] and after.fingerprint() != before.fingerprint()


def test_pictures_are_told_apart_by_content_without_reading_them(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", dict(image=[[png("red"), png("lime")], [png("blue")]]))
    dataset = build(path)
    pictures = dict(dataset.images())
    with monkeypatch.context() as patch:
        patch.setattr(ParquetDataset, "held", None)
        hashes = hash_images(tmp_path / "cache", pictures)
    assert len(set(hashes.values())) == 3
    assert [open_image(source).getpixel((0, 0)) for source in pictures.values()] == [RED, LIME, BLUE]
    assert f"{path}, record 1" in str(pictures[f"{path}:1:0"])


@pytest.mark.parametrize(
    ("columns", "reason", "text"),
    [
        (dict(conversations=["{no"]), "malformed", "not JSON"),
        (dict(image=[{"bytes": None, "path": None}]), "missing image", "neither bytes nor a path"),
        (dict(image=["../x.png"]), "outside image_folder", "lies outside"),
        (dict(image=["x.png"]), "missing image", "is missing"),
        (dict(question=["a?", "b?"], answer=[None, "b"]), "malformed", "message 1 is .*: expected"),
    ],
)
def test_a_refusal_names_file_and_record(tmp_path, columns, reason, text):
    import pyarrow

    if reason == "missing image" and isinstance(columns["image"][0], dict):
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        columns = dict(image=pyarrow.array(columns["image"], kind))
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(Refused, match=f"{path}, record 0: .*{text}") as refused:
        build(path)[0]
    assert refused.value.reason == reason


def test_columns_that_are_not_named_keep_their_own_names(tmp_path):
    path = write(tmp_path / "x.parquet", dict(question=["what?", "who?"], reply=["a", None]))
    dataset = build(path, columns=dict(answer="reply"))
    assert dataset.record(0)["conversations"] == [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a"}]
    with pytest.raises(ValueError, match="has a column for 'question', but none for 'answer': name it in `columns`"):
        build(path)


def test_mistakes_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", dict(a=[1], b=["x"]))
    with pytest.raises(ValueError, match=r"no column for images or conversations: it has a, b; name them in"):
        build(path)
    with pytest.raises(ValueError, match="has no column 'c': it has a, b"):
        build(path, columns=dict(image="c"))
    with pytest.raises(ValueError, match="columns has 'picture': expected some of image"):
        build(path, columns=dict(picture="b"))
    with pytest.raises(ValueError, match="column 'a' is int64: expected bytes, paths"):
        build(path, columns=dict(image="a"))
    (tmp_path / "y.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="y.parquet cannot be read as a Parquet file"):
        build(str(tmp_path / "y.parquet"))
    write(tmp_path / "z.parquet", dict(b=["x"]))
    with pytest.raises(ValueError, match="cannot be read as one table"):
        build([path, str(tmp_path / "z.parquet")], columns=dict(question="a", answer="b"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'asvr\[data\]'"):
        build(path)
