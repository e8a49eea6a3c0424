"""lmms-eval's tasks while a stage trains, and what any metric may do that asks the model itself."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from parallel_helpers import launch, make_config, train
from run_helpers import read_metrics

from asvr.benchmarks.run import run_benchmarks
from asvr.evaluation.metrics import Metric
from asvr.registry import METRICS

WORDS, CHOICE = "lmms/asvr_words/exact_match", "lmms/asvr_choice/acc"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("metric"), positions=256)


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory) -> Path:
    """Without a validation."""
    return run(config, tmp_path_factory.mktemp("plain") / "run", None)


def validated(config: Path, *metrics: dict, **settings) -> dict:
    questions = dict(type="LlavaDataset", ann_file=str(config.with_name("questions.json")))
    return dict(dataset=questions, interval=2, limit=3, max_new_tokens=2, metrics=list(metrics), **settings)


def options(validation: dict | None) -> dict:
    return {"validation": validation, "evaluation": None, "stages.finetune.init": "scratch", "data.max_length": 200}


def run(config: Path, work_dir: Path, validation: dict | None) -> Path:
    train(config, work_dir, options(validation), only="finetune")
    return work_dir


def validations(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "validation.jsonl").read_text().splitlines()]


def answers(work_dir: Path) -> list[tuple]:
    """Of the last validation."""
    rows = (work_dir / "finetune" / "lmms_eval" / "asvr_words.jsonl").read_text().splitlines()
    return [(row["doc_id"], row["filtered_resps"]) for row in map(json.loads, rows)]


def weights(work_dir: Path) -> bytes:
    return (work_dir / "finetune" / "checkpoints" / "step_00000004" / "model.safetensors").read_bytes()


@METRICS.register_module()
class Asking(Metric):
    """Asks the model, draws random numbers, and counts how often it was asked."""

    asked: list[int] = []

    def __init__(self, *, missing: bool = False):
        self.missing, self.numbers = missing, {}

    def check(self) -> list[str]:
        if self.missing:
            raise ValueError("Asking misses its data")
        return ["asked/training"]

    def ask(self, live, folder) -> None:
        random.random(), torch.rand(3)
        assert live.template["type"] == "vicuna_v1" and live.image_aspect == "square" and folder.is_dir()
        self.asked.append(len(list(live.model.parameters())))
        self.numbers = {"asked/training": float(live.model.training)}

    def update(self, row: dict) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return self.numbers


def test_a_metric_may_ask_the_model_and_leaves_training_as_it_was(config, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(Asking, "asked", [])
    validation = validated(config, dict(type="Asking"), best="asked/training")
    work_dir = run(config, tmp_path / "run", validation)
    assert [line["asked/training"] for line in validations(work_dir)] == [0.0, 0.0]  # in eval mode
    assert len(Asking.asked) == 2 and Asking.asked[0] > 0
    assert weights(work_dir) == weights(plain)
    losses = [[line["loss"] for line in read_metrics(folder)] for folder in (work_dir, plain)]
    assert losses[0] == losses[1]
    assert (work_dir / "finetune" / "best").is_dir()


def test_no_best_weights_are_kept_without_a_number_to_choose_by(config, plain, tmp_path):
    work_dir = run(config, tmp_path / "run", validated(config, dict(type="Asking")))
    assert (
        "validation.best is not set, and no metric of stage finetune gives an" in (work_dir / "train.log").read_text()
    )
    assert len(validations(work_dir)) == 2 and not (work_dir / "finetune" / "best").exists()
    assert weights(work_dir) == weights(plain)


@pytest.mark.parametrize(
    "metric, best, message",
    [
        (dict(type="Asking", missing=True), None, "stage finetune, validation: Asking misses its data"),
        (dict(type="Asking"), "asked/trainin", "validation.best='asked/trainin': no metric"),
        (dict(type="LmmsEval", tasks="mme"), None, "LmmsEval.tasks='mme': expected a list of lmms-eval's tasks"),
    ],
)
def test_what_a_metric_misses_is_told_before_the_run(config, tmp_path, metric, best, message):
    settings = {} if best is None else dict(best=best)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path / "run", validated(config, metric, **settings))
    assert not (tmp_path / "run").exists()


def test_without_lmms_eval_one_line_says_how_to_install_it(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(
        ValueError, match=r"LmmsEval needs lmms-eval, which is not installed: pip install 'asvr\[eval\]'"
    ):
        run(config, tmp_path / "run", validated(config, dict(type="LmmsEval", tasks=["mme"])))
    assert not (tmp_path / "run").exists()


# With lmms-eval itself ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks_metric(tasks) -> dict:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install -e '.[eval]')")
    names = ["asvr_words", "asvr_choice"]
    return dict(type="LmmsEval", tasks=names, limit=5, batch_size=2, include_paths=[str(tasks)])


@pytest.fixture(scope="module")
def alone(config, tasks_metric, tmp_path_factory) -> Path:
    validation = validated(config, dict(type="ExactMatch"), tasks_metric, best=CHOICE)
    return run(config, tmp_path_factory.mktemp("alone") / "run", validation)


def test_tasks_are_asked_while_a_stage_trains(alone, plain):
    for line in validations(alone):
        assert 0 <= line[WORDS] <= 1 and line[CHOICE] in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        assert not any("stderr" in key for key in line)
    assert weights(alone) == weights(plain)
    best = json.loads((alone / "finetune" / "best" / "checkpoint.json").read_text())
    assert best[CHOICE] == max(line[CHOICE] for line in validations(alone))


def test_the_numbers_are_those_of_the_command(alone, tasks, tmp_path):
    names = ["asvr_words", "asvr_choice"]
    found = run_benchmarks(
        alone, names, include_paths=[tasks], device="cpu", batch_size=2, out=tmp_path, stage="finetune", limit=5
    )
    results = {name: found["tasks"][name]["results"][name] for name in names}
    last = validations(alone)[-1]
    assert last[WORDS] == results["asvr_words"]["exact_match,none"]
    assert last[CHOICE] == results["asvr_choice"]["acc,none"]


def test_two_processes_share_the_questions_and_get_one_process_own_result(config, alone, tasks_metric, tmp_path):
    validation = validated(config, dict(type="ExactMatch"), tasks_metric, best=CHOICE)
    own = options(validation) | {"parallel": dict(type="DDP")}
    one = dict(config=str(config), work_dir=str(tmp_path / "run"), options=own, only="finetune")
    launch(tmp_path, [one], world=2)
    found, expected = validations(tmp_path / "run"), validations(alone)
    assert [(line[WORDS], line[CHOICE]) for line in found] == [(line[WORDS], line[CHOICE]) for line in expected]
    assert answers(tmp_path / "run") == answers(alone) and len(answers(alone)) == 5


def test_a_task_that_is_unknown_or_without_data_is_told_before_the_run(config, tasks_metric, tmp_path):
    for changed, message in (
        (dict(tasks=["asvr_word"]), r"lmms-eval has no task asvr_word \(alike: asvr_words"),
        (dict(tasks=["mme"]), "the data of 1 task are missing"),
    ):
        with pytest.raises(ValueError, match=message):
            run(config, tmp_path / "run", validated(config, tasks_metric | changed))
    assert not (tmp_path / "run").exists()


def test_a_task_that_fails_costs_a_warning(config, plain, tasks, tasks_metric, tmp_path):
    broken = (tasks / "asvr_words.yaml").read_text().replace("task: asvr_words", "task: asvr_broken")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "asvr_broken.yaml").write_text(broken)
    (tmp_path / "own" / "utils.py").write_text("def pictures(doc):\n    raise RuntimeError('no image')\n")
    metric = tasks_metric | dict(tasks=["asvr_broken"], include_paths=[str(tmp_path / "own")])
    work_dir = run(config, tmp_path / "run", validated(config, dict(type="ExactMatch"), metric))
    assert "lmms-eval: task asvr_broken failed: RuntimeError: no image" in (work_dir / "train.log").read_text()
    assert weights(work_dir) == weights(plain)
