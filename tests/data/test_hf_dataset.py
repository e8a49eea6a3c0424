"""Data sets of Hugging Face `datasets`: out of folders, by name, and as streams that go on exactly."""

import io
import json

import numpy as np
import pytest
from data_helpers import FixedTokens, byte_level
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from asvr.caches.codes import hash_images
from asvr.data.collate import Collate
from asvr.data.hf_dataset import HFDataset
from asvr.data.images import open_image
from asvr.data.mixture import sampler_of
from asvr.data.parquet import ParquetDataset
from asvr.data.samplers import BatchSampler, ResumableSampler, WindowSampler
from asvr.data.transforms import ImageTransform
from asvr.registry import DATASETS

datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install -e '.[data]')")

ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4)
ROWS = 23


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
        patch.delenv("ASVR_DOWNLOAD", raising=False)
        yield


def image(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(file, "png")
    return file.getvalue()


def rows(begin: int = 0, end: int = ROWS) -> dict:
    part = [dict(type="image", text=None)]
    said = [
        [dict(role="user", content=[*part * (i % 3 > 0), dict(type="text", text=f"{i}?")])]
        + [dict(role="assistant", content=[dict(type="text", text=f"word {i}")])]
        for i in range(begin, end)
    ]
    images = [[dict(bytes=image(i), path=None)] * (i % 3 > 0) for i in range(begin, end)]
    return dict(images=images, messages=said, id=list(range(begin, end)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four Parquet files with groups of rows that no window agrees with."""
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("parquet")
    schema = pyarrow.table(rows(1, 2)).schema
    for number, (begin, end) in enumerate([(0, 7), (7, 8), (8, 19), (19, ROWS)]):
        table = pyarrow.Table.from_pydict(rows(begin, end), schema)
        parquet.write_table(table, folder / f"train-{number}.parquet", row_group_size=3)
    return folder


def build(path, **kwargs) -> HFDataset:
    return DATASETS.build(dict(type="HFDataset", path=str(path), **kwargs), default_args=ITEM)


def essence(item: dict) -> tuple:
    return item["input_ids"], item["labels"], [open_image(source).tobytes() for source in item["images"]]


def same(one, other) -> bool:
    return [essence(item) for item in one] == [essence(item) for item in other]


def test_a_folder_of_files_is_the_parquet_dataset(folder):
    found, files = build(folder), ParquetDataset(files=str(folder / "*.parquet"), **ITEM)
    assert len(found) == ROWS and same(found, files)
    assert found[4]["sample_id"] == f"{folder}:train:4" and found.question(4)["answer"] == "word 4"
    assert list(found.texts()) == list(files.texts())
    assert found.fingerprint() == build(folder).fingerprint() != build(folder, split="train[:9]").fingerprint()
    assert len(build(folder, split="train[:9]")) == 9


def test_what_save_to_disk_wrote(folder, tmp_path):
    table = datasets.load_dataset(str(folder), split="train")
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select(range(5))).save_to_disk(tmp_path / "two")
    assert same(build(tmp_path / "one"), build(folder)) and same(build(tmp_path / "two"), build(folder))
    assert len(build(tmp_path / "two", split="test")) == 5
    assert same(build(tmp_path / "two", streaming=True, window=4), build(folder))
    with pytest.raises(ValueError, match="has no split 'val': it has 'train', 'test'"):
        build(tmp_path / "two", split="val")
    with pytest.raises(ValueError, match="has only the split 'train': set split='train'"):
        build(tmp_path / "one", split="test")


def test_what_a_saved_folder_does_not_have_is_told_and_not_ignored(folder, tmp_path):
    datasets.Dataset.from_list(datasets.load_dataset(str(folder), split="train").to_list()).save_to_disk(tmp_path)
    assert len(build(tmp_path)) == len(build(folder))
    for fields in (dict(split="test"), dict(split="train[:2]"), dict(name="x"), dict(revision="main")):
        with pytest.raises(ValueError, match="leave .* out"):
            build(tmp_path, **fields)


@pytest.mark.parametrize("offline", [False, True])
def test_a_name_is_read_from_the_cache_of_datasets(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("socket.socket.connect", None)
    (tmp_path / "pets").mkdir()
    table = datasets.Dataset.from_dict(dict(question=["what?", "who?"], answer=["a cat", "a dog"]))
    table.to_parquet(tmp_path / "pets/train-0.parquet")
    first = build(tmp_path / "pets")
    (tmp_path / "cache/pets").rename(tmp_path / "cache/someone___pets")
    found = build("someone/pets")
    assert list(found.texts()) == ["what?", "a cat", "who?", "a dog"] and found.fingerprint() == first.fingerprint()
    assert datasets.config.HF_HUB_OFFLINE == offline  # as before


def test_images_with_metadata_and_captions(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(image(i))
    lines = [dict(file_name=f"{i}.png", text=f"caption {i}") for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for streaming in (False, True):
        found = build(tmp_path, columns=dict(caption="text"), streaming=streaming)
        assert [item["image_keys"] != [] and found.question(i)["answer"] for i, item in enumerate(found)] == [
            f"caption {i}" for i in range(3)
        ]
        assert [open_image(item["images"][0]).getpixel((0, 0))[0] for item in found] == [0, 10, 20]
    with pytest.raises(ValueError, match="unknown column 'text'; did you mean 'conversations'"):
        build(tmp_path)


@pytest.mark.parametrize("window", [1, 4, 5, 23, 1000])
def test_a_stream_has_the_same_records_in_any_order(folder, window):
    stream, table = build(folder, streaming=True, window=window), build(folder)
    assert len(stream) == ROWS and same(stream, table)
    for i in (20, 3, 22, 0, 9):
        assert essence(stream[i]) == essence(table[i])


@given(length=st.integers(1, 60), window=st.integers(1, 70), start=st.integers(0, 200), seed=st.integers(0, 3))
def test_windows_are_drawn_one_behind_the_other_and_each_whole(length, window, start, seed):
    sampler = WindowSampler(length=length, window=window, seed=seed)
    sampler.seek(start)
    drawn = iter(sampler)
    found = [next(drawn) for _ in range(2 * length)]
    whole = [i for epoch in range(start // length, start // length + 4) for i in sampler.order(epoch).tolist()]
    assert found == whole[start % length :][: 2 * length]
    order = sampler.order(1)
    assert sorted(order.tolist()) == list(range(length))
    assert (np.diff(order // window) >= 0).all()
    if window >= length:
        assert (order == ResumableSampler(length=length, seed=seed).order(1)).all()


@pytest.mark.parametrize(("workers", "rank"), [(0, 0), (0, 1), (2, 1)])
def test_a_stream_goes_on_exactly_with_workers_and_processes(folder, workers, rank):
    stream = build(folder, streaming=True, window=5)
    collate = Collate(layout=FixedTokens(4), views=dict(encoder=ImageTransform(size=(4, 4))), pad_id=0)

    def steps(start: int, count: int) -> list:
        batches = BatchSampler(sampler_of(stream, 3), size=6, rank=rank, world_size=2)
        batches.seek(start)
        context = dict(multiprocessing_context="fork") if workers else {}
        loader = DataLoader(stream, batch_sampler=batches, collate_fn=collate, num_workers=workers, **context)
        return [
            (batch.input_ids_BT.tolist(), [p.sum().item() for p in batch.pixels.values()])
            for batch, _ in zip(loader, range(count), strict=False)
        ]

    whole = steps(0, 9)
    assert steps(18, 6) == whole[3:] and steps(42, 2) == whole[7:]
    order = [i for epoch in range(3) for i in WindowSampler(length=ROWS, window=5, seed=3).order(epoch)]
    expected = [collate([stream[int(i)] for i in order[6 * step : 6 * step + 6][rank::2]]) for step in range(9)]
    assert [ids for ids, _ in whole] == [batch.input_ids_BT.tolist() for batch in expected]


def test_a_stream_is_read_once_in_order(folder, monkeypatch):
    stream = build(folder, streaming=True, window=4)
    begun = []
    own = type(stream.rows.rows).iter
    monkeypatch.setattr(type(stream.rows.rows), "iter", lambda self, **kwargs: begun.append(1) or own(self, **kwargs))
    stream.rows._tables = None
    for i in stream.sampler(0).order(0):
        assert stream[int(i)]["input_ids"]
    assert len(begun) == 1


def test_a_stream_is_a_source_of_a_mixture(folder, monkeypatch):
    sources = [
        dict(dataset=dict(type="HFDataset", path=str(folder), streaming=streaming, window=4), weight=1, name=name)
        for streaming, name in ((True, "stream"), (False, "table"))
    ]
    both = DATASETS.build(dict(type="Mixture", sources=sources), default_args=ITEM)
    stream, begun = both.datasets[0].rows, []
    own = type(stream.rows).iter
    monkeypatch.setattr(type(stream.rows), "iter", lambda self, **kwargs: begun.append(1) or own(self, **kwargs))
    drawn = iter(both.sampler(0))
    found = [next(drawn) for _ in range(64)]
    table = build(folder)
    assert [essence(both[i]) for i in found] == [essence(table[i % ROWS]) for i in found]
    assert both.in_order and sorted(i for i in found if i < ROWS)[:3] == [0, 0, 1]
    assert len(begun) == 1  # for the second epoch


def test_a_stream_needs_its_length_and_lists_no_images(folder, tmp_path):
    assert len(build(folder, streaming=True, num_records=9)) == 9
    with pytest.raises(ValueError, match="the stream ended after 23 rows, expected 30: set num_records"):
        build(folder, streaming=True, num_records=30)
    stream = build(folder, streaming=True, num_records=30, window=4)
    with pytest.raises(ValueError, match="the stream ended after 23 rows, expected 30: set num_records"):
        stream[29]
    with pytest.raises(ValueError, match="need a list of all images.*set streaming=False, or data.cache=False"):
        list(stream.images())
    with pytest.raises(ValueError, match="num_records needs streaming=True"):
        build(folder, num_records=3)
    with pytest.raises(ValueError, match="window=0: expected at least 1"):
        build(folder, streaming=True, window=0)
    assert stream.fingerprint() == build(folder, streaming=True, num_records=30, window=4).fingerprint()
    assert len(stream.some_images(5)) == 2  # of its first window


def test_images_are_told_apart_without_reading_them(folder, tmp_path, monkeypatch):
    pictures = dict(build(folder).images())
    with monkeypatch.context() as patch:
        patch.setattr(HFDataset, "held", None)
        hashes = hash_images(tmp_path / "cache", pictures)
    assert len(set(hashes.values())) == len(pictures) == 15


def test_data_sets_that_are_not_here_are_told(tmp_path, monkeypatch):
    for streaming in (False, True):
        with pytest.raises(ValueError, match="path='lmms-lab/nothing'.*set ASVR_DOWNLOAD=1 to download it") as error:
            build("lmms-lab/nothing", streaming=streaming)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is not a folder"):
        build(tmp_path / "no/folder/here")
    (tmp_path / "x.parquet").write_text("x")
    with pytest.raises(ValueError, match="is a file: give its folder"):
        build(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="split='train' cannot be read"):
        build(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"HFDataset needs the package datasets: pip install 'asvr\[data\]'"):
        build(tmp_path)
