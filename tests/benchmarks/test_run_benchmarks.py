"""tools/eval.py runs lmms-eval's tasks: of files here, in words and by choice, without network."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
from run_helpers import ROOT, tiny_env

import asvr
from asvr.benchmarks import run as benchmarks
from asvr.benchmarks.data_files import MissingData
from asvr.benchmarks.paper import JUDGED, PAPER
from asvr.benchmarks.run import run_benchmarks
from asvr.benchmarks.task_files import find_tasks
from asvr.commands.cli import run_tool

WORDS, CHOICE = "asvr_words", "asvr_choice"


def test_without_lmms_eval_the_command_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ValueError, match=r"lmms-eval, which is not installed: pip install 'asvr\[eval\]'"):
        run_benchmarks(tmp_path, ["mme"])


@pytest.fixture(scope="module")
def lmms_eval():
    return pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install -e '.[eval]')")


@pytest.fixture
def own_tasks(tasks, tmp_path):
    """A copy that a test may add to."""
    return shutil.copytree(tasks, tmp_path / "own")


def add_task(folder, name: str, changes: dict[str, str]) -> None:
    """A task like the one in words."""
    text = (folder / f"{WORDS}.yaml").read_text().replace(f"task: {WORDS}", f"task: {name}")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.yaml").write_text(text)


def rows_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(lmms_eval, tiny_run, tasks, tmp_path_factory) -> tuple:
    out = tmp_path_factory.mktemp("ran")
    return out, run_benchmarks(
        tiny_run, [WORDS, CHOICE], include_paths=[tasks], device="cpu", batch_size=3, out=out, stage="finetune"
    )


def test_a_run_answers_as_it_does_by_itself(ran, tiny_run, questions):
    out, result = ran
    model = asvr.load(tiny_run, device="cpu")
    answers = [row["filtered_resps"][0] for row in rows_of(out / "samples" / f"{WORDS}.jsonl")]
    assert answers == [
        model.chat(row["picture"], row["question"], max_new_tokens=6).split("\n")[0] for row in questions
    ]
    right = [answer == row["answer"] for answer, row in zip(answers, questions, strict=True)]
    words = result["tasks"][WORDS]
    assert words["results"][WORDS]["exact_match,none"] == pytest.approx(sum(right) / 8)
    assert words["n-samples"][WORDS]["effective"] == 8
    choices = rows_of(out / "samples" / f"{CHOICE}.jsonl")
    assert result["tasks"][CHOICE]["results"][CHOICE]["acc,none"] == pytest.approx(sum(c["acc"] for c in choices) / 8)


def test_results_say_what_they_are_of(ran, tiny_run):
    out, result = ran
    assert json.loads((out / "results.json").read_text()) == result
    assert result["model"]["folder"] == str(tiny_run) and result["model"]["stage"] == "finetune"
    newest = sorted((tiny_run / "finetune" / "checkpoints").iterdir())[-1]
    assert (
        result["model"]["weights"]
        == json.loads((newest / "checkpoint.json").read_text())["sha256"]["model.safetensors"]
    )
    assert result["versions"]["lmms-eval"].startswith("0.7")
    assert result["settings"] == dict(limit=None, batch_size=3, device="cpu")
    text = (out / "report.md").read_text()
    assert f"| {WORDS} | exact_match |" in text and f"| {CHOICE} | acc |" in text


def test_finished_tasks_are_kept(ran, tiny_run, own_tasks, tmp_path, monkeypatch):
    out = shutil.copytree(ran[0], tmp_path / "out")
    asked = []
    own = benchmarks._one
    monkeypatch.setattr(benchmarks, "_one", lambda *args: asked.append(args[2]) or own(*args))

    def again(**changes):
        asked.clear()
        settings = dict(include_paths=[own_tasks], device="cpu", batch_size=3, out=out) | changes
        return run_benchmarks(tiny_run, [WORDS, CHOICE], **settings)

    monkeypatch.setattr("asvr.loading.load", None)  # no model is needed
    assert again()["tasks"] == ran[1]["tasks"] and asked == []
    monkeypatch.undo()
    monkeypatch.setattr(benchmarks, "_one", lambda *args: asked.append(args[2]) or own(*args))
    assert again(limit=2)["tasks"][WORDS]["n-samples"][WORDS]["effective"] == 2 and asked == [WORDS, CHOICE]
    add_task(own_tasks, WORDS, {"max_new_tokens: 6": "max_new_tokens: 5"})
    again(limit=2)
    assert WORDS in asked
    again(limit=2, stage="blind")
    assert asked == [WORDS, CHOICE]


def test_results_of_earlier_commands_are_told_apart(ran, tiny_run, own_tasks, tmp_path):
    """Those of tasks that are the same, have changed, or are nowhere to be seen."""
    out = shutil.copytree(ran[0], tmp_path / "out")

    def of_choice(*include_paths) -> tuple:
        settings = dict(device="cpu", batch_size=8, out=out, include_paths=include_paths)
        result = run_benchmarks(tiny_run, [WORDS], **settings)
        return list(result["tasks"]), result["unchecked"], result["changed"], (out / "report.md").read_text()

    assert of_choice(own_tasks)[:3] == ([CHOICE, WORDS], [], [])
    (alone := tmp_path / "alone").mkdir()
    for name in (f"{WORDS}.yaml", "utils.py"):
        shutil.copy(own_tasks / name, alone)
    *found, text = of_choice(alone)
    assert found == [[CHOICE, WORDS], [CHOICE], []] and f"| {CHOICE} | acc |" in text
    assert f"## Results of an earlier command, not checked\n\n- {CHOICE}\n" in text
    file = own_tasks / f"{CHOICE}.yaml"
    file.write_text(file.read_text().replace("doc_to_text: question", "doc_to_text: answer"))
    *found, text = of_choice(own_tasks)
    assert found == [[WORDS], [], [CHOICE]] and f"| {CHOICE} | acc |" not in text
    assert f"## Left out, because they have changed since they ran\n\n- {CHOICE}\n" in text


def test_a_trial_leaves_whole_results_alone(lmms_eval, tiny_run, tasks, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    settings = dict(include_paths=[tasks], device="cpu", batch_size=8)
    whole = run_benchmarks(folder, [WORDS], **settings)
    run_benchmarks(folder, [WORDS], limit=2, **settings)
    assert len(rows_of(folder / "benchmarks" / "finetune" / "first_2" / "samples" / f"{WORDS}.jsonl")) == 2
    assert json.loads((folder / "benchmarks" / "finetune" / "results.json").read_text()) == whole


def test_a_failing_task_does_not_cost_the_others(lmms_eval, tiny_run, own_tasks, tmp_path):
    add_task(own_tasks, "asvr_broken", {"doc_to_text: question": "doc_to_text: !function broken.question"})
    (own_tasks / "apart").mkdir()  # its code is no other's
    (own_tasks / "asvr_broken.yaml").rename(own_tasks / "apart" / "asvr_broken.yaml")
    shutil.copy(own_tasks / "utils.py", own_tasks / "apart")
    broken = own_tasks / "apart" / "broken.py"
    broken.write_text("def question(doc):\n    raise OSError('no room')\n")
    out = tmp_path / "out"
    settings = dict(include_paths=[own_tasks], device="cpu", batch_size=8, limit=2, out=out)
    result = run_benchmarks(tiny_run, ["asvr_broken", WORDS], **settings)
    assert list(result["tasks"]) == [WORDS] and result["failed"] == {"asvr_broken": "OSError: no room"}
    assert "Traceback" in (out / "benchmarks.log").read_text()
    assert "- asvr_broken: OSError: no room" in (out / "report.md").read_text()
    kept = (out / "tasks" / f"{WORDS}.json").stat().st_mtime_ns
    broken.write_text("def question(doc):\n    return doc['question']\n")
    shutil.rmtree(broken.parent / "__pycache__", ignore_errors=True)
    result = run_benchmarks(tiny_run, ["asvr_broken"], **settings)
    assert list(result["tasks"]) == ["asvr_broken", WORDS], "those of commands before belong to it"
    assert not result["failed"]
    assert (out / "tasks" / f"{WORDS}.json").stat().st_mtime_ns == kept


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    return tmp_path


CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test-*
---
"""
HUB = {"dataset_path: json": "dataset_path: nobody/Nothing", "dataset_kwargs:": "metadata:"}


def test_missing_data_are_told_before_a_model_is_loaded(lmms_eval, tiny_run, own_tasks, empty_cache, monkeypatch):
    add_task(own_tasks, "asvr_hub", HUB)
    settings = dict(include_paths=[own_tasks], device="cpu", limit=2, out=empty_cache / "out")
    with monkeypatch.context() as patch:
        patch.setattr("asvr.loading.load", None)
        with pytest.raises(MissingData, match="hf download --repo-type dataset nobody/Nothing") as told:
            run_benchmarks(tiny_run, ["asvr_hub", WORDS], **settings)
        assert told.value.tasks == ["asvr_hub"] and f"whose data are here: {WORDS}." in str(told.value)
        with pytest.raises(MissingData):
            run_benchmarks(tiny_run, ["asvr_hub"], skip_missing=True, **settings)
    assert not (empty_cache / "out").exists()
    result = run_benchmarks(tiny_run, ["asvr_hub", WORDS], skip_missing=True, **settings)
    assert list(result["tasks"]) == [WORDS] and result["missing"] == ["asvr_hub"]


def test_what_hf_download_fetched_is_read_without_network(lmms_eval, tiny_run, own_tasks, empty_cache, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    add_task(own_tasks, "asvr_hub", HUB)
    folder = empty_cache / "hub" / "datasets--nobody--Nothing"
    for name in ("refs", "blobs", "snapshots/abc/data"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "README.md").write_text(CARD)
    shutil.copy(own_tasks / "test.jsonl", folder / "blobs" / "123")  # where the cache has its files
    (folder / "snapshots" / "abc" / "data" / "test-0.jsonl").symlink_to("../../../blobs/123")
    result = run_benchmarks(
        tiny_run, ["asvr_hub"], include_paths=[own_tasks], device="cpu", limit=2, out=empty_cache / "out"
    )
    assert result["tasks"]["asvr_hub"]["n-samples"]["asvr_hub"]["effective"] == 2


def test_a_task_that_fetched_its_data_is_kept(lmms_eval, tiny_run, own_tasks, empty_cache, monkeypatch):
    """Its revision is known after it only."""
    add_task(own_tasks, "asvr_hub", HUB)
    monkeypatch.setenv("ASVR_DOWNLOAD", "1")
    asked = []

    def fetch_and_ask(model, manager, name, limit, out):
        asked.append(name)
        prepared = empty_cache / "datasets" / "nobody___nothing" / "default" / "0.0.0" / "abc"
        prepared.mkdir(parents=True)
        (prepared / "dataset_info.json").write_text("{}")
        return {"results": {name: {}}, "n-samples": {}}

    monkeypatch.setattr(benchmarks, "_one", fetch_and_ask)
    for _ in range(2):
        settings = dict(include_paths=[own_tasks], device="cpu", out=empty_cache / "out")
        assert list(run_benchmarks(tiny_run, ["asvr_hub"], **settings)["tasks"]) == ["asvr_hub"]
    assert asked == ["asvr_hub"]


def test_the_papers_preset_names_what_lmms_eval_has(lmms_eval, tiny_run, empty_cache):
    with pytest.raises(MissingData) as told:
        run_benchmarks(tiny_run, ["paper"])
    assert told.value.tasks == [benchmark.task for benchmark in PAPER]
    assert str(told.value).count("hf download --repo-type dataset") == 14


def test_the_papers_metrics_are_its_tasks_own(lmms_eval, own_tasks):
    from datasets import Dataset
    from lmms_eval.utils import load_yaml_config

    add_task(own_tasks, "asvr_gone", {"test.jsonl": "none.jsonl"})
    (own_tasks / "group.yaml").write_text("group: asvr_group\ntask:\n  - mme\n  - asvr_gone\n")
    tasks = find_tasks([*(benchmark.task for benchmark in PAPER), *JUDGED, "asvr_group"], [own_tasks])
    for benchmark in PAPER:
        [(config, _)] = tasks.members[benchmark.task]
        assert set(benchmark.metrics) <= {entry["metric"] for entry in config["metric_list"]}
    for name in ("asvr_hallusion_bench_image", "asvr_seedbench_image"):
        config = load_yaml_config(tasks.manager.task_index[name]["yaml_path"], mode="full")
        assert callable(config["doc_to_text"]) and callable(config["process_results"])
    dataset = Dataset.from_dict(dict(data_type=["image", "video", "image"], n=[0, 1, 2]))
    assert config["process_docs"](dataset)["n"][:] == [0, 2]
    mme, gone = tasks.missing(["asvr_group"])["asvr_group"].split("- ", 2)[1:]  # of each of a group's tasks
    assert mme.startswith("asvr_group: lmms-lab") and "none.jsonl" in gone


def test_hallusion_bench_is_scored_by_yes_and_no(lmms_eval):
    from lmms_eval.utils import load_yaml_config

    from asvr.benchmarks.paper import TASKS

    config = load_yaml_config(str(TASKS / "asvr_hallusion_bench_image.yaml"), mode="full")
    same = dict(category="VD", subcategory="math", set_id="0", image=None, question="is it?")
    docs = [
        dict(same, question_id=str(q), figure_id=str(f), gt_answer=str((q + f) % 2)) for q in (0, 1) for f in (0, 1)
    ]
    answers = ["No.", "Yes, it is", "Yes", "Yes"]  # all right but the last
    found = [config["process_results"](doc, [answer]) for doc, answer in zip(docs, answers, strict=True)]
    score = {m["metric"]: m["aggregation"]([row[m["metric"]] for row in found]) for m in config["metric_list"]}
    assert score == dict(aAcc=0.75, qAcc=0.5, fAcc=0.5)
    assert config["doc_to_text"](docs[0], config["lmms_eval_specific_kwargs"]["default"]).endswith("answer yes or no.")


def test_groups_of_tasks_run_as_one(lmms_eval, tiny_run, own_tasks, tmp_path):
    (own_tasks / "both.yaml").write_text(f"group: asvr_both\ntask:\n  - {WORDS}\n  - {CHOICE}\n")
    settings = dict(include_paths=[own_tasks], device="cpu", batch_size=8, limit=2, out=tmp_path / "out")
    result = run_benchmarks(tiny_run, ["asvr_both"], **settings)
    assert {WORDS, CHOICE} <= result["tasks"]["asvr_both"]["results"].keys()
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| {WORDS} | exact_match |" in text and f"| {CHOICE} | acc |" in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["asvr_wordz"], r"no task asvr_wordz \(alike: asvr_words.*--include-path"),
        (["hallusion_bench_image"], r"judges the answers of hallusion_bench_image \(asvr_hallusion_bench_image"),
        (["mmbench_en"], r"judges the answers of mmbench_en_dev \(mmbench_en_dev_static measures without\): set"),
        (["mmbench"], "judges the answers of mmbench_en_dev .*; mmbench_cn_dev; mmbench_cn_cc; mmbench_ru_dev: set"),
        (["mmbench_ko_dev", "mmbench_en_dev_lite"], "judges the answers of mmbench_ko_dev; mmbench_en_dev_lite: set"),
        ([], "--tasks: name tasks"),
    ],
)
def test_names_that_cannot_run_are_refused(lmms_eval, tiny_run, tasks, names, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=message):
        run_benchmarks(tiny_run, names, include_paths=[tasks])


def test_a_judge_with_a_key_may_be_asked(lmms_eval, tiny_run, empty_cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(ValueError, match="a GPT model judges"):
        run_benchmarks(tiny_run, ["mmbench_en"])
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with pytest.raises(MissingData, match="mmbench_en"):
        run_benchmarks(tiny_run, ["mmbench_en"])


def test_folders_that_are_none_are_refused(lmms_eval, tiny_run, tmp_path):
    with pytest.raises(ValueError, match="--include-path .*expected a folder with lmms-eval tasks"):
        run_benchmarks(tiny_run, [WORDS], include_paths=[tmp_path])
    with pytest.raises(ValueError, match="neither a folder with asvr.json nor a run's work dir"):
        run_benchmarks(tmp_path, [WORDS])
    with pytest.raises(ValueError, match="no such stage; expected one of"):
        run_benchmarks(tiny_run, [WORDS], stage="third")


def test_a_stage_whose_weights_are_gone_is_refused(lmms_eval, tiny_run, tmp_path):
    """Other checkpoints of it may be there still."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    checkpoints = sorted((folder / "finetune" / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for checkpoint in reversed(checkpoints):
        shutil.rmtree(checkpoint)
        with pytest.raises(ValueError, match="the last checkpoint of stage 'finetune' in .* is gone: run asvr train"):
            run_benchmarks(folder, [WORDS])


def test_the_command_line_asks_a_saved_model(lmms_eval, tiny_run, tasks, ran, tmp_path):
    folder = asvr.load(tiny_run, device="cpu").save_pretrained(tmp_path / "mine")
    command = [sys.executable, str(ROOT / "tools/eval.py"), str(folder), "--tasks", f"{WORDS},{CHOICE}"]
    command += ["--include-path", str(tasks), "--batch-size", "3", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=tiny_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"| {WORDS} | exact_match |" in done.stdout and f"| {CHOICE} | acc |" in done.stdout
    for name in (WORDS, CHOICE):
        ours, runs = (rows_of(out / "samples" / f"{name}.jsonl") for out in (folder / "benchmarks", ran[0]))
        assert [row["filtered_resps"] for row in ours] == [row["filtered_resps"] for row in runs]


def test_the_tool_takes_a_config_and_fails_where_a_task_does(lmms_eval, tiny_run, own_tasks, tmp_path, monkeypatch):
    (own_tasks / "broken.py").write_text("def question(doc):\n    raise OSError('no room')\n")
    add_task(own_tasks, "asvr_broken", {"doc_to_text: question": "doc_to_text: !function broken.question"})
    command = ["eval.py", str(ROOT / "configs/asvr_mini.py"), "--work-dir", str(tiny_run), "--tasks", "asvr_broken"]
    command += ["--include-path", str(own_tasks), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit, match=r"1 task\(s\) failed; run the same command to try them again"):
        run_tool(runpy.run_path(str(ROOT / "tools/eval.py"))["main"])
