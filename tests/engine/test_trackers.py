"""Runs that report to W&B, MLflow, Aim and TensorBoard, each with the real package where it is installed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend
from parallel_helpers import make_config, train
from run_helpers import read_metrics

from asvr.base.log import logger
from asvr.engine.hooks.visualizer import charts
from asvr.engine.trackers import Trackers
from asvr.recipe.config import load_config
from asvr.recipe.recipe import load_recipe
from asvr.registry import VISBACKENDS

STEPS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("trackers"))


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory) -> Path:
    """A run without trackers."""
    return run(config, tmp_path_factory.mktemp("plain") / "run", None)


def run(config: Path, work_dir: Path, visualizer, *, like: Path | None = None, **options) -> Path:
    """like: a run that has computed features and codes already."""
    if like is not None and not work_dir.exists():
        for name in ("cache", "tokenizers"):
            shutil.copytree(like / name, work_dir / name)
    questions = dict(type="LlavaDataset", ann_file=str(config.with_name("questions.json")))
    validation = dict(dataset=questions, interval=2, limit=3, max_new_tokens=2)
    own = {"visualizer": visualizer, "validation": validation, "stages.finetune.init": "scratch", **options}
    train(config, work_dir, own, only="finetune")
    return work_dir


def resumed(config: Path, work_dir: Path, visualizer, **options) -> Path:
    """The run, as if it had been killed behind the checkpoint of step 2, and then gone on."""
    stage = work_dir / "finetune"
    (stage / "done.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "step_00000004")
    return run(config, work_dir, visualizer, **options)


def weights(work_dir: Path) -> bytes:
    return (work_dir / "finetune" / "checkpoints" / "step_00000004" / "model.safetensors").read_bytes()


def losses(work_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(work_dir)]


# The spellings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "short, types",
    [
        ("wandb", ["WandbVisBackend"]),
        (["tensorboard", "mlflow"], ["TensorboardVisBackend", "MLflowVisBackend"]),
        ([dict(type="aim")], ["AimVisBackend"]),
        (dict(vis_backends=["local"]), ["LocalVisBackend"]),
        (dict(vis_backends=[dict(type="LocalVisBackend")]), ["LocalVisBackend"]),
    ],
)
def test_every_spelling_is_one_form_in_a_stage(config, short, types):
    recipe = load_recipe(config, dict(visualizer=short))
    assert [entry.type for entry in recipe.stages["finetune"].visualizer.vis_backends] == types


def test_a_stage_may_name_other_trackers_or_none(config):
    changes = {"visualizer": "wandb", "stages.finetune.visualizer": ["local"], "stages.pretrain.visualizer": None}
    stages = load_recipe(config, changes).stages
    assert stages["pretrain"].visualizer is None
    assert stages["finetune"].visualizer == dict(vis_backends=[dict(type="LocalVisBackend")])


@pytest.mark.parametrize(
    "given, message",
    [
        ("", r"visualizer='': no such tracker"),
        ("wandbb", r"visualizer='wandbb': no such tracker; did you mean 'wandb'\?"),
        (["tensorboard", "mflow"], r"visualizer\[1\]='mflow': no such tracker; did you mean 'mlflow'\?"),
        (["wandb", dict(type="WandbVisBackend")], "visualizer: each type may be given once"),
        (7, "visualizer=7: expected dict"),
        (dict(vis_backends=["local"], images=-1), "visualizer.images=-1: expected a whole number, at least 0"),
        ([dict(type="wandb", init_kwargs=3)], r"visualizer\[0\].init_kwargs=3: expected a dict"),
        ([dict(type="wandb", project="x")], r"visualizer\[0\].project: WandbVisBackend has no such field"),
    ],
)
def test_a_wrong_tracker_is_told_with_the_nearest_name(config, given, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(config, dict(visualizer=given))


def test_a_missing_package_is_told_before_anything_is_done(config, tmp_path, monkeypatch):
    monkeypatch.setattr("asvr.recipe.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^visualizer: the tracker 'mlflow' needs mlflow: pip install mlflow$"):
        run(config, tmp_path / "run", "mlflow")
    assert not (tmp_path / "run").exists()


# What arrives ---------------------------------------------------------------------------------------------


@VISBACKENDS.register_module()
class Recorder(LocalVisBackend):
    """Keeps what it is given; ``broken`` names a method that raises."""

    calls: list[tuple] = []

    def __init__(self, *, save_dir: str, broken: str | None = None):
        super().__init__(save_dir)
        self.broken = broken

    def _note(self, method: str, *what) -> None:
        self.calls.append((method, *what))
        if method == self.broken:
            raise OSError("the server\nis gone")

    def add_config(self, config, **kwargs) -> None:
        self._note("add_config", config)

    def add_scalars(self, scalar_dict, step=0, **kwargs) -> None:
        self._note("add_scalars", scalar_dict, step)

    def add_image(self, name, image, step=0, **kwargs) -> None:
        self._note("add_image", name, image, step)

    def close(self) -> None:
        self._note("close")


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    monkeypatch.setattr(Recorder, "calls", [])
    return Recorder.calls


def test_a_tracker_gets_numbers_images_and_the_resolved_config(config, plain, tmp_path, calls):
    work_dir = run(config, tmp_path / "run", dict(vis_backends=["Recorder"], images=2), like=plain)
    assert weights(work_dir) == weights(plain) and losses(work_dir) == losses(plain)
    given = next(what[1] for what in calls if what[0] == "add_config")
    assert given.optim.lr == 2e-3 and given.evaluation.batch_size == 2 and given.validation.interval == 2
    numbers = {name: step for what in calls if what[0] == "add_scalars" for name in what[1] for step in [what[2]]}
    assert {
        "train/loss_text",
        "train/acc_semantic/1",
        "train/lr",
        "train/tokens_per_s",
        "train/peak_memory_gib",
    } <= set(numbers)
    assert numbers["validation/accuracy"] == numbers["evaluation/codes/semantic/0"] == 4
    images = [(what[1], what[3]) for what in calls if what[0] == "add_image"]
    expected = [(f"validation/sample_{i}", step) for step in (2, 4) for i in range(2)]
    assert images == expected + [(f"evaluation/sample_{i}", 4) for i in range(2)]
    shapes = {what[2].shape for what in calls if what[0] == "add_image"}
    assert all(what[2].dtype == np.uint8 for what in calls if what[0] == "add_image")
    assert len(shapes) == 1 and next(iter(shapes))[2] == 3


def test_no_images_where_none_are_wanted(config, plain, tmp_path, calls):
    run(config, tmp_path / "run", dict(vis_backends=["Recorder"], images=0), like=plain)
    assert {what[0] for what in calls} == {"add_config", "add_scalars", "close"}


@pytest.mark.parametrize("broken, before", [("add_config", 0), ("add_image", 3)])
def test_a_tracker_that_fails_costs_one_warning(config, plain, tmp_path, calls, broken, before):
    options = dict(evaluation=None)
    work_dir = run(config, tmp_path / "run", ["local", dict(type="Recorder", broken=broken)], **options, like=plain)
    assert weights(work_dir) == weights(plain)
    told = [line for line in (work_dir / "train.log").read_text().splitlines() if "Recorder failed" in line]
    assert len(told) == 1
    assert told[0].endswith("gets no more logs of stage finetune; training goes on (OSError: the server)")
    assert len([what for what in calls if what[0] == "add_scalars"]) == before
    lines = (work_dir / "finetune" / "vis_data" / "scalars.json").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "train/loss" in line] == STEPS


def test_a_tracker_that_cannot_go_on_says_so(config, plain, tmp_path, calls):
    work_dir = run(config, tmp_path / "run", "Recorder", evaluation=None, like=plain)
    assert "cannot go on" not in (work_dir / "train.log").read_text()
    resumed(config, work_dir, "Recorder", evaluation=None)
    assert "Recorder cannot go on with an earlier run: it begins a new run" in (work_dir / "train.log").read_text()


def test_a_broken_list_of_earlier_runs_begins_new_runs(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    folder = tmp_path / "run" / "finetune"
    (folder / "vis_data").mkdir(parents=True)
    for text in ("", "[1", "3"):
        (folder / "vis_data" / "runs.json").write_text(text)
        caplog.clear()
        assert Trackers(None, folder).trackers == {}
        assert "runs.json cannot be read, so the trackers begin new runs" in caplog.text


def test_numbers_that_never_change_are_no_charts():
    kinds = dict(color=dict(accuracy=0.5, total=4), **{"is it/total": dict(accuracy=1.0, right=2, total=2)})
    result = dict(accuracy=0.6, total=6, by_kind=kinds, losses=dict(text=1.0), refused=0, seconds=2.5, step=3)
    assert charts(result, "validation") == {
        "validation/accuracy": 0.6,
        "validation/total": 6,
        "validation/by_kind/color/accuracy": 0.5,
        "validation/by_kind/is it/total/accuracy": 1.0,
        "validation/losses/text": 1.0,
    }
    assert charts(dict(by_kind=3.0, mine=dict(total=2)), "evaluation") == {
        "evaluation/by_kind": 3.0,
        "evaluation/mine/total": 2,
    }


def test_tensorboard_gets_images_and_the_config(config, plain, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    work_dir = run(config, tmp_path / "run", "tensorboard", like=plain)
    events = EventAccumulator(str(work_dir / "finetune" / "vis_data")).Reload()
    assert {"validation/sample_0", "evaluation/sample_0"} <= set(events.Tags()["images"])
    assert [image.step for image in events.Images("validation/sample_0")] == [2, 4]
    [text] = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert text.startswith(b"```python\n") and text.endswith(b"\n```") and b"\nwork_dir = " in text


def test_wandb_gets_everything_offline_in_one_run(config, plain, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in dict(WANDB_MODE="offline", WANDB_SILENT="true").items():
        monkeypatch.setenv(name, value)
    log, found, runs = wandb.Run.log, [], []

    def listened(run, data, **settings):
        found.append(data)
        runs.append((run.id, run.name, run.group, run.project))
        return log(run, data, **settings)

    monkeypatch.setattr(wandb.Run, "log", listened)
    work_dir = run(config, tmp_path / "run", "wandb", like=plain)
    assert weights(work_dir) == weights(plain)
    files = list((work_dir / "finetune" / "vis_data").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and all(file.stat().st_size for file in files)  # of training, and of the evaluation
    assert [(line["step"], line["train/loss"]) for line in found if "train/loss" in line] == list(
        zip(STEPS, losses(work_dir), strict=True)
    )
    assert [line["step"] for line in found if "validation/accuracy" in line] == [2, 4]
    assert [line["step"] for line in found if "validation/sample_1" in line] == [2, 4]
    assert [line["step"] for line in found if "evaluation/total" in line] == [4]
    resumed(config, work_dir, "wandb", evaluation=None)
    assert len(set(runs)) == 1 and runs[0][1:] == ("run/finetune", "run", "asvr")
    assert [line["step"] for line in found if "train/loss" in line] == [*STEPS, 3, 4]


def test_mlflow_gets_everything_in_one_run(config, plain, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow's database needs sqlalchemy")
    monkeypatch.chdir(tmp_path)
    work_dir = run(config, tmp_path / "run", "mlflow", like=plain)
    assert weights(work_dir) == weights(plain)
    resumed(config, work_dir, "mlflow", evaluation=None)
    client = mlflow.MlflowClient(f"sqlite:///{work_dir / 'mlflow' / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "asvr")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run/finetune" and found.data.tags["stage"] == "finetune"
    assert found.info.status == "FINISHED" and found.data.params["optim.lr"] == "0.002"
    points = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted(point.step for point in points) == [1, 2, 3, 3, 4, 4]  # those behind the checkpoint twice
    by_step = dict(zip(STEPS, losses(work_dir), strict=True))
    assert all(point.value == pytest.approx(by_step[point.step]) for point in points)
    assert found.data.metrics["evaluation/total"] == 5
    files = [file.name for file in (work_dir / "mlflow" / "artifacts").rglob("*.png")]
    assert any("validation" in name and "sample_0" in name for name in files)
    assert not (tmp_path / "mlruns").exists()


def test_aim_gets_everything_in_one_run(config, plain, tmp_path):
    aim = pytest.importorskip("aim", reason="aim is not installed")
    work_dir = run(config, tmp_path / "run", "aim", like=plain)
    assert weights(work_dir) == weights(plain)
    resumed(config, work_dir, "aim", evaluation=None)
    repo = aim.Repo.from_path(str(work_dir))
    repo._recreate_index()  # which `aim up` does by itself
    (found,) = repo.iter_runs()
    assert found.name == "run/finetune" and found.experiment == "run"
    assert found["hparams", "optim", "lr"] == 2e-3
    points = next(one for one in found.metrics() if one.name == "train/loss").dataframe().sort_values("step")
    assert points["step"].tolist() == STEPS
    assert points["value"].tolist() == pytest.approx(losses(work_dir))
    images = found.collect_sequence_info(sequence_types=("images",))["images"]
    assert {"validation/sample_0", "evaluation/sample_0"} <= {image["name"] for image in images}


def test_the_config_of_a_run_with_a_short_name_loads_again(config, plain, tmp_path):
    loaded = load_config(plain / "config.py", dict(visualizer="tensorboard"))
    assert loaded.visualizer == "tensorboard"
