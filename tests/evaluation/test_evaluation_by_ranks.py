"""Several processes, each of which asks its share of the questions, find what one finds, to the last bit."""

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import engine_helpers
import pytest
import torch
from data_helpers import byte_level
from engine_helpers import collate, item, tiny_model
from PIL import Image
from torch import distributed, multiprocessing

from asvr.data.llava import LlavaDataset
from asvr.engine.parallel import FSDP2, full_params
from asvr.evaluation import accuracy
from asvr.evaluation.accuracy import evaluate

RANKS, TIMEOUT = 3, timedelta(seconds=60)
BROKEN = "4.png"  # an image that cannot be read
CASES = dict(
    uneven=dict(batch_size=2),
    few=dict(batch_size=2, limit=3),
    refused=dict(batch_size=1, broken=True),
    sharded=dict(batch_size=2, wrapper=FSDP2),
    sharded_few=dict(batch_size=2, limit=3, wrapper=FSDP2),
)


def write_questions(folder: Path) -> None:
    rows = []
    for i in range(7):
        Image.new("RGB", (12 + i, 9), (30 * i, 255 - 30 * i, 40)).save(folder / f"{i}.png")
        turns = [
            {"from": "human", "value": "<image>\nwhat is it" + " now" * (3 * i % 7) + "?"},
            {"from": "gpt", "value": "word " * (1 + i % 3)},
        ]
        rows.append(dict(conversations=turns, image=f"{i}.png", category=f"kind {i % 2}"))
    rows.append(dict(rows[2], conversations=[{"from": "human", "value": "<image>\nwhy?"}, turns[1]]))
    (folder / "questions.json").write_text(json.dumps(rows))
    (folder / "broken.json").write_text(json.dumps([*rows[:3], dict(rows[3], image=BROKEN), *rows[5:]]))
    (folder / BROKEN).write_bytes(b"no image")
    (folder / "whole.json").write_text(json.dumps([row for row in rows if row["image"] != BROKEN]))


def found(folder: Path, out: Path, *, broken: bool = False, wrapper=None, **settings) -> dict:
    own = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=200, num_image_tokens=4, on_error="skip")
    file = folder / ("broken.json" if broken else "whole.json")
    dataset = LlavaDataset(ann_file=str(file), image_folder=str(folder), **own)
    data = SimpleNamespace(image_aspect="square", max_length=200, on_error="skip", template="vicuna_v1")
    with patch.dict(engine_helpers.LLAMA, num_hidden_layers=2):  # so that one block is gathered ahead of another
        model = tiny_model(vocab_size=len(byte_level()), max_positions=256)
    shared = model if wrapper is None else wrapper(module=model, device=torch.device("cpu"))
    settings |= dict(data=data, precision="float32", max_new_tokens=3, samples_file=out / "answers.jsonl")
    with full_params(shared) as whole:
        result = evaluate(whole, dataset, byte_level(), **settings)
    if wrapper is not None:
        step(shared)
    return result


def step(wrapper: FSDP2) -> None:
    """What a process gathers ahead here must not depend on how many batches it has evaluated."""
    model = wrapper.module.train()
    batch = collate(model)([item(image=Image.new("RGB", (8, 8)))])
    model(batch, model.count_targets([batch]))["loss"].backward()


def rank(number: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=RANKS, timeout=TIMEOUT
    )
    batches, real = [], accuracy.generate

    def counted(model, batch, *args, **kwargs):
        batches.append(len(batch.sample_ids))
        return real(model, batch, *args, **kwargs)

    results = {}
    with patch.object(accuracy, "generate", counted):
        for name, settings in CASES.items():
            batches.clear()
            results[name] = dict(found(folder, folder / "several" / name, **settings), asked=sum(batches))
    (folder / f"{number}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    write_questions(folder)
    multiprocessing.spawn(rank, (folder,), RANKS)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_same_as_one_process(folder, name):
    settings = {key: value for key, value in CASES[name].items() if key != "wrapper"}
    expected = found(folder, folder / "one" / name, **settings)
    assert (expected["total"], expected["refused"]) == dict(
        uneven=(7, 0), few=(3, 0), refused=(6, 1), sharded=(7, 0), sharded_few=(3, 0)
    )[name]
    results = [json.loads((folder / f"{number}.json").read_text())[name] for number in range(RANKS)]
    asked = [result.pop("asked") for result in results]
    assert sum(asked) == expected["total"] and (min(asked) > 0 or "few" in name)
    for result in [expected, *results]:
        result.pop("seconds")
    assert results[0] == results[1] == results[2] == json.loads(json.dumps(expected))
    assert len(expected["examples"]) == dict(uneven=6, few=3, refused=5, sharded=6, sharded_few=3)[name]
    assert lines(folder, name) == lines(folder, name, "one")


def lines(folder: Path, name: str, by: str = "several") -> list[dict]:
    return [json.loads(line) for line in (folder / by / name / "answers.jsonl").read_text().splitlines()]
