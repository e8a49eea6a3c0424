"""Stores of codes: what is written is read, what is torn is computed again, what is damaged is named."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asvr.base.files import sha256_of
from asvr.caches import codes as code_cache
from asvr.caches.codes import CodeCache, CodeStore, hash_images
from asvr.data.refusals import Refused

SHAPE = (4, 2)


def store_at(root, size=9, **depends_on) -> CodeStore:
    return CodeStore(root, "semantic", depends_on=dict(fingerprint="a") | depends_on, shape=SHAPE, size=size)


def codes(rows: int, seed: int = 0, size: int = 9) -> torch.Tensor:
    return torch.randint(size, (rows, *SHAPE), generator=torch.Generator().manual_seed(seed))


@given(batches=st.lists(st.integers(1, 4), min_size=1, max_size=5), size=st.sampled_from([9, 2**15, 2**15 + 1, 2**20]))
def test_what_is_written_is_read(batches, size, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    store, expected = store_at(root, size), {}
    for part, rows in enumerate(batches):  # processes of their own, and then one that goes on
        with store.writer(f"{part % 2}-of-2") as writer:
            values = codes(rows, seed=part, size=size)
            values[0, 0, 0] = size - 1
            names = [f"{part}-{row}" for row in range(rows)]
            writer.add(names, values)
            expected |= dict(zip(names, values, strict=True))
    again = store_at(root, size)
    cache = CodeCache({name: name for name in expected}, dict(semantic=again))
    assert torch.equal(cache.truth("semantic", list(expected))["codes"].long(), torch.stack(list(expected.values())))
    assert again.dtype == (np.int16 if size <= 2**15 else np.int32) and cache.truth("other", ["0-0"]) is None
    assert all(name in again for name in expected) and "x" not in again


@pytest.mark.parametrize("cut", ["line", "data", "both", "line without data"])
def test_what_a_killed_process_left_behind_is_computed_again(cut, tmp_path):
    store = store_at(tmp_path)
    with store.writer("0-of-1") as writer:
        writer.add(["a", "b", "c"], codes(3))
    index, data = store.folder / "index.0-of-1.jsonl", store.folder / "codes.0-of-1.bin"
    if cut in ("line", "both"):
        os.truncate(index, index.stat().st_size - 5)
    if cut in ("data", "both"):
        os.truncate(data, data.stat().st_size - 1)
    if cut == "line without data":
        data.unlink()
    after = store_at(tmp_path)
    kept = [] if cut == "line without data" else ["a", "b"]
    assert [name for name in "abc" if name in after] == kept
    with after.writer("0-of-1") as writer:
        lost = [name for name in "abc" if name not in after]
        writer.add(lost, codes(3)[-len(lost) :])
    whole = CodeCache({name: name for name in "abc"}, dict(semantic=store_at(tmp_path)))
    assert torch.equal(whole.truth("semantic", ["a", "b", "c"])["codes"].long(), codes(3))
    assert data.stat().st_size == 3 * store.row_bytes and len(index.read_text().splitlines()) == 3


def test_a_damaged_row_is_named(tmp_path):
    store = store_at(tmp_path)
    with store.writer("0-of-1") as writer:
        writer.add(["a", "b"], codes(2))
    with open(store.folder / "codes.0-of-1.bin", "r+b") as file:
        file.seek(store.row_bytes + 3)
        file.write(b"\x55")
    damaged = CodeCache(dict(a="a", b="b"), dict(semantic=store_at(tmp_path)))
    assert torch.equal(damaged.truth("semantic", ["a"])["codes"][0].long(), codes(2)[0])
    with pytest.raises(ValueError, match=r"codes\.0-of-1\.bin: row 1 is damaged: delete"):
        damaged.truth("semantic", ["a", "b"])["codes"]


def test_other_codes_have_another_folder(tmp_path):
    folders = {store_at(tmp_path, **change).folder for change in ({}, dict(fingerprint="b"), dict(aspect="pad"))}
    assert len(folders) == 3
    file = store_at(tmp_path).folder / "store.json"
    file.write_text(json.dumps(dict(shape=[1, 1])))
    with pytest.raises(ValueError, match="describes other codes than 'semantic' needs: delete"):
        store_at(tmp_path)


def test_a_picture_that_cannot_be_read_is_refused_when_its_sample_comes(tmp_path):
    store = store_at(tmp_path)
    with store.writer("0-of-1") as writer:
        writer.add(["a"], codes(1))
        writer.refuse("b", "b.png cannot be read", "unreadable image")
    cache = CodeCache(dict(x="a", y="b"), dict(semantic=store_at(tmp_path)))
    cache.check(["x"])
    with pytest.raises(Refused, match=r"b\.png cannot be read"):
        cache.check(["x", "y"])
    assert cache.features(["x"]) is None
    with store.writer("0-of-1") as writer:  # it could be read later on
        writer.add(["b"], codes(1))
    CodeCache(dict(x="a", y="b"), dict(semantic=store_at(tmp_path))).check(["x", "y"])


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0",
        b"5",
        b"{}",
        b'{"sha256": "a"}',
        b'{"sha256": "a", "row": -1, "crc32": 3}',
        b'{"sha256": 7, "row": 0, "crc32": 3}',
        b'{"sha256": "a", "refused": "x"}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_index_is_named(line, tmp_path):
    store = store_at(tmp_path)
    with store.writer("0-of-1") as writer:
        writer.add(["a"], codes(1))
    index = store.folder / "index.0-of-1.jsonl"
    index.write_bytes(index.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"index\.0-of-1\.jsonl: line 2 is damaged: delete"):
        store_at(tmp_path)
    (store.folder / "store.json").write_bytes(line[:3])
    with pytest.raises(ValueError, match=r"store\.json: .*: delete"):
        store_at(tmp_path)
    (tmp_path / "files.jsonl").write_bytes(line + b"\n")
    assert hash_images(tmp_path, {}) == {}


def test_a_part_has_one_writer(tmp_path):
    store = store_at(tmp_path)
    with store.writer("0-of-1") as writer:
        writer.add(["a"], codes(1))
        with pytest.raises(ValueError, match="another process is writing it.*--shard i/n"):
            store_at(tmp_path).writer("0-of-1")
        with store_at(tmp_path).writer("1-of-2") as other:
            other.add(["b"], codes(1))
    with store.writer("0-of-1") as writer:
        writer.add(["c"], codes(1))
    assert all(name in store_at(tmp_path) for name in "abc")


def test_a_picture_in_memory_is_known_by_what_it_shows(tmp_path):
    red, blue = (Image.new("P", (2, 2)) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    found = hash_images(tmp_path, dict(red=red, blue=blue, same=red.convert("RGB"), wide=Image.new("RGB", (4, 1))))
    assert found["red"] == found["same"] and len(set(found.values())) == 3


def test_a_file_is_hashed_again_only_where_it_changed(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("RGB", (3, 3), "red").save(file)
    red = Image.open(file).convert("RGB")
    pictures = dict(a=file, same=str(file), gone=tmp_path / "gone.png", held=red)
    first = hash_images(tmp_path / "cache", pictures)
    assert first["a"] == first["same"] and len(set(first.values())) == 3
    read = []
    monkeypatch.setattr(code_cache, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    assert hash_images(tmp_path / "cache", pictures) == first and not read
    with open(tmp_path / "cache" / "files.jsonl", "a") as log:
        log.write('\n["torn')
    Image.new("RGB", (3, 3), "blue").save(file)
    os.utime(file, ns=(1, 1))
    assert hash_images(tmp_path / "cache", pictures)["a"] != first["a"] and read == ["a.png"]
    assert hash_images(tmp_path / "cache", pictures)["a"] != first["a"] and read == ["a.png"]
