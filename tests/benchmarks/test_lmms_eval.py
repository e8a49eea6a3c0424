"""lmms-eval asks a model of this library: a task of local files, from the command line and in process."""

import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
from run_helpers import ROOT

import asvr

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install -e '.[eval]')")


@pytest.fixture(scope="module")
def model(tiny_run):
    return asvr.load(tiny_run, device="cpu")


def simple_evaluate(model, tasks, name: str, **kwargs) -> list[dict]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    result = simple_evaluate(model=model, tasks=[name], task_manager=manager, **kwargs)
    return sorted(result["samples"][name], key=lambda sample: sample["doc_id"])


def prompt(row: dict) -> dict:
    return dict(images=[row["picture"]], messages=[{"from": "human", "value": row["question"]}])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_live_model_gives_its_own_answers(model, questions, tasks, batch_size):
    from asvr.benchmarks.lmms_eval import Asvr

    samples = simple_evaluate(Asvr(pretrained=model, batch_size=batch_size), tasks, "asvr_words")
    expected = [model.chat(row["picture"], row["question"], max_new_tokens=6) for row in questions]
    assert [sample["filtered_resps"][0] for sample in samples] == [answer.split("\n")[0] for answer in expected]


def test_a_tasks_texts_cannot_write_control_tokens(model):
    from asvr.benchmarks.lmms_eval import Asvr

    own, special = Asvr(pretrained=model), model.text_tokenizer.hf.all_special_ids
    own.task_dict = dict(task=dict(test=[{}]))
    counts = []
    for text in ("".join(model.text_tokenizer.hf.all_special_tokens), "x"):
        conversation = own._scored((text, text, lambda doc: [], 0, "task", "test"))
        ids = model.batch([conversation], answered=True).input_ids_BT[0].tolist()
        counts.append(sum(token in special for token in ids))
    assert counts[0] == counts[1]


def test_choices_are_those_of_the_smallest_loss(model, questions, tasks):
    from asvr.benchmarks.lmms_eval import Asvr

    samples = simple_evaluate(Asvr(pretrained=model, batch_size=2), tasks, "asvr_choice")
    for sample, row in zip(samples, questions, strict=True):
        conversations = [
            dict(
                images=[row["picture"]],
                messages=[{"from": "human", "value": row["question"]}, {"from": "gpt", "value": choice}],
            )
            for choice in row["choices"]
        ]
        losses = [loss for loss, _ in model.score(conversations)]
        assert sample["acc"] == float(losses.index(min(losses)) == row["gold"])


def test_the_command_line_finds_the_model(tiny_run, tasks, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "asvr", "--model_args", f"pretrained={tiny_run}"]
    command += ["--include_path", str(tasks), "--tasks", "asvr_words", "--batch_size", "4", "--device", "cpu"]
    command += ["--output_path", str(tmp_path), "--log_samples"]
    env = dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "asvr_words" in done.stdout and "exact_match" in done.stdout


def test_a_question_too_long_costs_the_others_nothing(model, questions, tasks, tmp_path, monkeypatch, caplog):
    from asvr.benchmarks.lmms_eval import Asvr

    folder = shutil.copytree(tasks, tmp_path / "tasks")
    rows = [dict(row) for row in questions]
    rows[3]["question"] *= 30
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "asvr_words.yaml"
    file.write_text(file.read_text().replace(str(tasks / "test.jsonl"), "long.jsonl"))
    expected = [sample["filtered_resps"] for sample in simple_evaluate(Asvr(pretrained=model), tasks, "asvr_words")]
    lengths = [model.batch([prompt(row)]).attention_mask_BT.shape[1] for row in questions]
    monkeypatch.setattr(model.model.llm, "max_positions", max(lengths) + 6)
    monkeypatch.setattr(logging.getLogger("asvr"), "propagate", True)
    samples = simple_evaluate(Asvr(pretrained=model, batch_size=4), folder, "asvr_words")
    expected[3] = [""]
    assert [sample["filtered_resps"] for sample in samples] == expected
    assert "no answer: a prompt of" in caplog.text


def test_a_choice_too_long_loses_and_costs_the_others_nothing(model, questions, tasks, tmp_path, monkeypatch, caplog):
    from asvr.benchmarks.lmms_eval import Asvr

    folder = shutil.copytree(tasks, tmp_path / "tasks")
    rows = [dict(row, choices=["yes", "no"], gold=1) for row in questions]
    (folder / "here.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "asvr_choice.yaml"
    file.write_text(file.read_text().replace(str(tasks / "test.jsonl"), "here.jsonl"))
    expected = [sample["acc"] for sample in simple_evaluate(Asvr(pretrained=model), folder, "asvr_choice")]
    lengths = [model.batch([prompt(row)]).attention_mask_BT.shape[1] for row in questions]
    rows[3]["choices"] = ["yes " * 200, "no"]
    (folder / "here.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(model.model.llm, "max_positions", max(lengths) + 6)
    monkeypatch.setattr(logging.getLogger("asvr"), "propagate", True)
    samples = simple_evaluate(Asvr(pretrained=model, batch_size=4), folder, "asvr_choice")
    expected[3] = 1.0
    assert [sample["acc"] for sample in samples] == expected
    assert "a choice counts as the worst: a prompt of" in caplog.text
