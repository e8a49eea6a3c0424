"""A run that goes on reads what it trains on, and nothing of what it has trained on before."""

import io
import json
import os
import tarfile
from itertools import islice

import pytest
from data_helpers import FixedTokens, byte_level
from mmengine.config import Config
from PIL import Image

from asvr.data import tar
from asvr.data.collate import Collate
from asvr.data.packing import deal
from asvr.recipe.build import build_train_loader
from asvr.registry import DATASETS

BATCH = 4
ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4)


def chat(i: int) -> dict:
    return dict(conversations=[{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "yes" * (1 + i % 5)}])


def jsonl(folder, count: int) -> dict:
    (folder / f"{count}.jsonl").write_text("".join(json.dumps(chat(i)) + "\n" for i in range(count)))
    return dict(type="LlavaDataset", ann_file=str(folder / f"{count}.jsonl"))


def tars(folder) -> dict:
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "png")
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as file:
            for i in range(5):
                for field, data in (("png", png.getvalue()), ("json", json.dumps(chat(i)).encode())):
                    member = tarfile.TarInfo(f"{i}.{field}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    return dict(type="TarDataset", files=str(folder / "*.tar"))


def parquet(folder) -> dict:
    pytest.importorskip("datasets", reason="datasets is not installed (pip install -e '.[data]')")
    from pyarrow import parquet, table

    parquet.write_table(table(dict(question=[f"{i}?" for i in range(11)], answer=["yes"] * 11)), folder / "x.parquet")
    return dict(type="ParquetDataset", files=str(folder / "x.parquet"))


def mixture(folder) -> dict:
    sources = [dict(dataset=jsonl(folder, 5), weight=2), dict(dataset=jsonl(folder, 9), weight=1)]
    return dict(type="Mixture", sources=[*sources, dict(dataset=tars(folder), weight=0.5)])


KINDS = dict(jsonl=lambda folder: jsonl(folder, 11), tar=tars, parquet=parquet, mixture=mixture)


@pytest.fixture(params=KINDS)
def dataset(request, tmp_path, monkeypatch):
    if request.param == "parquet":
        datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install -e '.[data]')")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    return DATASETS.build(KINDS[request.param](tmp_path), default_args=ITEM)


def steps(
    dataset, first: int, count: int, workers: int = 0, balance: bool = False, cost: dict | None = None
) -> list[list[str]]:
    """The samples of some steps, from step ``first`` on."""
    data = dict(micro_batch=2, global_batch=BATCH, num_workers=workers, balance=balance)
    collate = Collate(layout=FixedTokens(4), views={}, pad_id=0)
    loader = build_train_loader(Config(dict(data=data, runtime=dict(seed=3))), dataset, collate, cost)
    loader.batch_sampler.seek(first * BATCH)
    return [[sample for batch in step for sample in batch.sample_ids] for step in islice(loader, count)]


def test_a_run_goes_on_where_it_stood(dataset):
    whole = steps(dataset, 0, 9)
    assert steps(dataset, 4, 5) == whole[4:]
    assert steps(dataset, 4, 5, workers=2) == whole[4:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_step_by_the_cost_of_its_samples(dataset, world_size, monkeypatch):
    """``data.balance`` reaches the loader: the shares are those of `Balance`, each sample is in one of them."""
    items = [dataset[i] for i in range(len(dataset))]
    lengths = {item["sample_id"]: len(item["input_ids"]) + 3 * len(item["images"]) for item in items}
    whole, cost = steps(dataset, 0, 6), dict(token=0.0, pair=1.0)  # squares, so that it is not the number
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr("asvr.recipe.build.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("asvr.recipe.build.get_world_size", lambda: world_size)
        shares.append(steps(dataset, 0, 6, balance=True, cost=cost))
        by_number = steps(dataset, 0, 6, cost=cost)
        assert by_number == [step[rank::world_size] for step in whole]
    for step, *own in zip(whole, *shares, strict=True):
        assert sorted(sample for share in own for sample in share) == sorted(step)
        dealt = deal([lengths[sample] ** 2 for sample in step], world_size)
        assert [set(share) for share in own] == [{step[i] for i in indices} for indices in dealt]


@pytest.fixture
def read(monkeypatch):
    """Every record that is read, by any dataset's own way."""
    seen = []

    def noted(cls):
        original = cls.record
        monkeypatch.setattr(cls, "record", lambda self, i: (seen.append(self.sample_id(i)), original(self, i))[1])

    for name in ("LlavaDataset", "TarDataset", "ParquetDataset"):
        noted(DATASETS.get(name))
    return seen


def test_nothing_is_read_but_the_samples_of_the_steps(dataset, read):
    """Also not when it begins late: in the third pass over a source, say."""
    drawn = [sample for step in steps(dataset, 7, 2) for sample in step]
    assert read == drawn and len(read) == 2 * BATCH


def test_bytes_of_other_records_stay_unread(tmp_path, monkeypatch):
    """Counted where the bytes come from."""
    dataset = DATASETS.build(mixture(tmp_path), default_args=ITEM)
    spans = []
    pread, read = os.pread, tar._read
    monkeypatch.setattr(os, "pread", lambda fd, size, at: (spans.append(size), pread(fd, size, at))[1])
    monkeypatch.setattr(tar, "_read", lambda path, a, b: (spans.append(b - a), read(path, a, b))[1])
    assert len(steps(dataset, 100_000, 2)) == 2
    assert len(spans) == 2 * BATCH and max(spans) < 100
