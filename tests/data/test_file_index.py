"""What is kept of a large file is what would be found anew, and never of another state of it."""

import json
import os
import pickle
import threading
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asvr.data import file_index as module
from asvr.data import llava
from asvr.data.file_index import SUFFIX, FileReader, file_index
from asvr.data.llava import KIND, LlavaDataset, index_records

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "KEPT_FROM", 0)
    monkeypatch.setenv("ASVR_CACHE", str(tmp_path / "cache"))


def written(path, data: bytes, when: int = LONG_AGO) -> str:
    path.write_bytes(data)
    os.utime(path, (when, when))
    return str(path)


def spans(path: str) -> np.ndarray:
    return file_index(path, KIND, lambda path: dict(spans=index_records(path))).arrays["spans"]


def unread(path: str) -> dict:
    raise AssertionError(f"{path} was scanned again")


LINES = st.lists(
    st.one_of(
        st.binary(max_size=12).filter(lambda line: b"\n" not in line),
        st.sampled_from([b"", b" ", b"\t  \r", b"   \t   ", b"\r", '{"ä": "\u2028 \U0001f600"}'.encode()]),
        st.integers(50, 200).map(lambda n: b'{"a": "' + b"x" * n + b'"}'),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(lines=LINES, crlf=st.booleans(), ended=st.booleans(), block=st.integers(1, 40))
def test_the_kept_index_is_the_fresh_one_whatever_the_bytes(tmp_path_factory, lines, crlf, ended, block):
    end = b"\r\n" if crlf else b"\n"
    data = b'{"first": 1}' + end + end.join(lines) + (end if ended else b"")
    path = written(tmp_path_factory.mktemp("any") / "x.jsonl", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "BLOCK", block)
        fresh = index_records(path)
        made = spans(path)
    kept = file_index(path, KIND, unread).arrays["spans"]
    assert fresh.dtype == kept.dtype == np.int64 and isinstance(kept, np.memmap)
    assert fresh.tolist() == made.tolist() == kept.tolist()
    assert [data[a:b].strip() for a, b in kept] == [line.strip() for line in data.split(b"\n") if line.strip()]


def test_a_large_file_is_scanned_and_hashed_once(tmp_path, monkeypatch):
    path = written(tmp_path / "x.jsonl", b'{"id": 1}\n{"id": 2}\n')
    first = LlavaDataset(ann_file=path)
    monkeypatch.setattr(llava, "index_records", unread)
    monkeypatch.setattr(module, "sha256_of", unread)
    again = LlavaDataset(ann_file=path)
    assert [again.record(i) for i in range(len(again))] == [dict(id=1), dict(id=2)]
    assert again.fingerprint() == first.fingerprint()
    assert sorted(os.listdir(tmp_path)) == ["x.jsonl", "x.jsonl" + SUFFIX]


CHANGES = dict(
    longer=lambda path: written(path, b'{"id": 1}\n{"id": 2}\n{"id": 3}\n'),
    same_size_and_time=lambda path: written(path, b'{"id": 1, "a": 2}\n  '),
    later=lambda path: os.utime(path, (LONG_AGO + 1, LONG_AGO + 1)),
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_indexed_anew(tmp_path, change):
    path = tmp_path / "x.jsonl"
    spans(written(path, b'{"id": 1}\n{"id": 2}\n'))
    CHANGES[change](path)
    with pytest.raises(AssertionError, match="scanned again"):
        file_index(str(path), KIND, unread)
    assert spans(str(path)).tolist() == index_records(str(path)).tolist()
    assert file_index(str(path), KIND, unread).sha256 == module.sha256_of(path)


def test_of_a_file_that_was_just_written_nothing_is_kept(tmp_path):
    """It could change once more within the clock's tick, and look the same."""
    (tmp_path / "x.jsonl").write_bytes(b'{"id": 1}\n')
    spans(str(tmp_path / "x.jsonl"))
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = written(tmp_path / "x.jsonl", b'{"id": 1}\n')

    def scan(path: str) -> dict:
        with open(path, "ab") as file:
            file.write(b'{"id": 2}\n')
        return dict(spans=index_records(path))

    with pytest.raises(ValueError, match="x.jsonl changed while it was read"):
        file_index(path, KIND, scan)


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_damaged_or_foreign_index_is_made_anew(tmp_path, cut):
    path = written(tmp_path / "x.jsonl", b'{"id": 1}\n{"id": 2}\n')
    right = spans(path).tolist()
    index = tmp_path / ("x.jsonl" + SUFFIX)
    index.write_bytes(index.read_bytes()[:cut])
    assert spans(path).tolist() == right
    with pytest.raises(AssertionError, match="scanned again"):
        file_index(path, "another kind", unread)


def test_where_the_folder_cannot_be_written_the_cache_keeps_it(tmp_path, monkeypatch):
    path = written(tmp_path / "x.jsonl", b'{"id": 1}\n')
    (tmp_path / ("x.jsonl" + SUFFIX)).mkdir()  # also root cannot replace it
    right = spans(path).tolist()
    assert file_index(path, KIND, unread).arrays["spans"].tolist() == right
    (kept,) = (tmp_path / "cache" / "index").iterdir()
    assert kept.name.startswith("x.jsonl-") and kept.name.endswith(SUFFIX)
    kept.unlink()
    kept.mkdir()  # now nothing can be written
    assert spans(path).tolist() == right
    assert sorted(os.listdir(tmp_path)) == ["cache", "x.jsonl", "x.jsonl" + SUFFIX]


def test_many_that_need_an_index_make_it_once(tmp_path):
    path = written(tmp_path / "x.jsonl", b'{"id": 1}\n')
    scans, ready = [], threading.Barrier(4)

    def scan(path: str) -> dict:
        scans.append(path)
        return dict(spans=index_records(path))

    def start() -> None:
        ready.wait()
        file_index(path, KIND, scan)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scans == [path]


def _records(dataset, indices, results) -> None:
    results.put([dataset.record(i)["id"] for i in indices])


def test_forked_processes_read_through_one_handle_without_disturbing_one_another(tmp_path):
    n = 400
    path = written(tmp_path / "x.jsonl", b"".join(json.dumps(dict(id=i)).encode() + b"\n" for i in range(n)))
    dataset, fork = LlavaDataset(ann_file=path), get_context("fork")
    results = fork.SimpleQueue()
    orders = [np.random.RandomState(seed).permutation(n).tolist() for seed in range(3)]
    children = [fork.Process(target=_records, args=(dataset, order, results)) for order in orders]
    for child in children:
        child.start()
    own = [dataset.record(i)["id"] for i in range(n)]
    found = [results.get() for _ in children]
    for child in children:
        child.join()
    assert own == list(range(n)) and sorted(found) == sorted(orders)
    open_files = (f"/proc/self/fd/{handle}" for handle in os.listdir("/proc/self/fd"))
    assert [os.readlink(file) for file in open_files if os.path.exists(file)].count(path) == 1


def test_a_reader_closes_its_handle_and_travels_without_it(tmp_path):
    path = written(tmp_path / "x", b"0123456789")
    reader = FileReader(path)
    handle = reader._handle
    other = pickle.loads(pickle.dumps(reader))
    assert other._handle != handle and other(2, 5) == reader(2, 5) == b"234"
    del reader
    with pytest.raises(OSError):
        os.fstat(handle)
