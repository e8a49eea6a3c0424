"""lmms-eval asks a model of this library: a task of local files, from the command line and in process."""

import json
import os
import subprocess
import sys

import pytest
from run_helpers import ROOT

import asvr
from asvr.data.easy_vqa import EasyVQA

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install -e '.[eval]')")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {output}
doc_to_visual: !function utils.pictures
doc_to_text: question
doc_to_target: {target}
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image

def pictures(doc):
    return [Image.open(doc["picture"])]
"""


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    dataset = EasyVQA(split="test", max_pictures=4, seed=None)
    records = [dataset.record(i) for i in range(8)]
    return [
        dict(
            picture=str(dataset.picture(record["image"])[1]),
            question=record["conversations"][0]["value"].replace("<image>\n", ""),
            answer=record["conversations"][1]["value"],
            choices=["yes", "no", "circle"],
            gold=0,
        )
        for record in records
    ]


@pytest.fixture(scope="module")
def tasks(questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "utils.py").write_text(UTILS)
    kinds = dict(
        asvr_words=dict(output="generate_until", target="answer", metric="exact_match"),
        asvr_choice=dict(output="multiple_choice", target="gold", metric="acc"),
    )
    more = dict(
        asvr_words="generation_kwargs: {max_new_tokens: 6, until: ['\\n']}", asvr_choice="doc_to_choice: choices"
    )
    for name, kind in kinds.items():
        text = TASK.format(name=name, data=folder / "test.jsonl", more=more[name], **kind)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def model(tiny_run):
    return asvr.load(tiny_run, device="cpu")


def simple_evaluate(model, tasks, name: str, **kwargs) -> list[dict]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    result = simple_evaluate(model=model, tasks=[name], task_manager=manager, **kwargs)
    return sorted(result["samples"][name], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_live_model_gives_its_own_answers(model, questions, tasks, batch_size):
    from asvr.evaluation.lmms_eval import Asvr

    samples = simple_evaluate(Asvr(pretrained=model, batch_size=batch_size), tasks, "asvr_words")
    expected = [model.chat(row["picture"], row["question"], max_new_tokens=6) for row in questions]
    assert [sample["filtered_resps"][0] for sample in samples] == [answer.split("\n")[0] for answer in expected]


def test_choices_are_those_of_the_smallest_loss(model, questions, tasks):
    from asvr.evaluation.lmms_eval import Asvr

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
