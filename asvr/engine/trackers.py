"""The trackers of a stage, which are backends of MMEngine. Each gets everything that is logged, and may fail safely.

``<stage>/vis_data/runs.json`` has each tracker's name of the stage's run. With it, a stage that goes on, and its
evaluation, are logged to the same run.
"""

import copy
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.visualization import (
    AimVisBackend,
    LocalVisBackend,
    MLflowVisBackend,
    TensorboardVisBackend,
    Visualizer,
    WandbVisBackend,
)
from mmengine.visualization.vis_backend import BaseVisBackend

from asvr.base import compat
from asvr.base.distributed import is_main_process
from asvr.base.files import replace_text
from asvr.base.log import logger
from asvr.evaluation.live import LiveModel
from asvr.evaluation.samples import sample_images
from asvr.recipe.recipe import Stage
from asvr.recipe.trackers import IMAGES
from asvr.registry import VISBACKENDS

RUNS = "runs.json"
PROJECT = "asvr"  # the default of W&B's project and MLflow's experiment


class Tracker:
    """One backend. A backend without a class of its own below begins a new run each time.

    own: its entry in the config. folder: the stage's folder. run: the tracker's name of an earlier run, or None.
    """

    goes_on = False  # whether a later process can add to the same run

    def __init__(self, own: dict, folder: Path, run: str | None):
        self.own, self.folder, self.run = own, folder, run
        self.backend: BaseVisBackend | None = None

    @property
    def title(self) -> str:
        """The title of the stage's run."""
        return f"{self.folder.absolute().parent.name}/{self.folder.name}"

    def config(self) -> dict:
        """The config from which MMEngine builds the backend."""
        return self.own

    def begin(self, settings: dict, step: int) -> str | None:
        """Begin a run, or go on with one after ``step``. Returns the tracker's name of the run, or None."""
        self.backend.add_config(Config(settings))
        return None

    def scalars(self, numbers: dict[str, float], step: int) -> None:
        self.backend.add_scalars(numbers, step=step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self.backend.add_image(name, image, step=step)

    def close(self) -> None:
        self.backend.close()


class LocalFile(Tracker):
    goes_on = True

    def begin(self, settings: dict, step: int) -> None:
        file = Path(self.backend.experiment._scalar_save_file)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            replace_text(file, "".join(f"{line}\n" for line in kept))
        super().begin(settings, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        super().image(name.replace("/", "_"), image, step)  # it becomes a file name; the backend makes no folders


class TensorBoard(Tracker):
    goes_on = True

    def begin(self, settings: dict, step: int) -> None:
        if any(Path(self.backend._save_dir).glob("events.*")):
            writer = self.backend.experiment
            writer.close()  # the next scalar begins a new file, whose first event hides later steps of the old files
            writer.purge_step = step + 1
        text = Config(settings).pretty_text  # TensorBoard reads Markdown: without a code block, lines run together
        self.backend.experiment.add_text("config", f"```python\n{text}\n```")


class WandB(Tracker):
    """W&B. Points are drawn over our ``step``, since W&B's own step can only grow: it cannot go back on resume."""

    goes_on = True

    def config(self) -> dict:
        init = dict(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.title,
            group=self.folder.absolute().parent.name,
            job_type=self.folder.name,
            id=self.run,
            resume="allow",
        )
        metrics = [dict(name="*", step_metric="step")]
        return dict(dict(define_metric_cfg=metrics), **self.own) | dict(
            init_kwargs=init | (self.own.get("init_kwargs") or {})
        )

    def begin(self, settings: dict, step: int) -> str:
        wandb = self.backend.experiment
        # The backend's own method would also upload every Python file below the current directory.
        wandb.config.update(settings, allow_val_change=True)
        return wandb.run.id

    def scalars(self, numbers: dict[str, float], step: int) -> None:
        super().scalars(dict(numbers, step=step), step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        wandb = self.backend.experiment
        wandb.log({name: wandb.Image(image), "step": step})


class MLflow(Tracker):
    goes_on = True
    _OF_RUN = ("run_name", "tags", "params")  # with these, MMEngine's backend would begin a run before we name it

    def config(self) -> dict:
        given = {key: value for key, value in self.own.items() if value is not None and key not in self._OF_RUN}
        place = compat.mlflow_place(self.folder.parent / "mlflow")
        if "MLFLOW_TRACKING_URI" in os.environ:
            place = dict(tracking_uri=os.environ["MLFLOW_TRACKING_URI"], exp_name=place["exp_name"])
        if "MLFLOW_EXPERIMENT_NAME" in os.environ:
            place["exp_name"] = os.environ["MLFLOW_EXPERIMENT_NAME"]
        return place | given

    def begin(self, settings: dict, step: int) -> str:
        (self.folder.parent / "mlflow").mkdir(parents=True, exist_ok=True)  # the default place of the database
        mlflow = self.backend.experiment
        tags = dict(self.own.get("tags") or {}, stage=self.folder.name, work_dir=str(self.folder.absolute().parent))
        run = mlflow.start_run(run_id=self.run, run_name=self.own.get("run_name") or self.title, tags=tags)
        if self.run is None:  # MLflow does not allow to change a run's parameters later
            mlflow.log_params(self.own.get("params") or {})
            self.backend.add_config(Config(settings))
        return run.info.run_id

    def scalars(self, numbers: dict[str, float], step: int) -> None:
        """Log numbers. Characters that MLflow does not allow in names are replaced by ``_``."""
        super().scalars({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in numbers.items()}, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self.backend.experiment.log_image(
            image, key=name, step=step
        )  # the backend's own method keeps only the last one

    def close(self) -> None:
        self.backend.experiment.end_run()  # the backend's own method would upload every text file of the work dir


class Aim(Tracker):
    goes_on = True

    def config(self) -> dict:
        init = dict(
            repo=str(self.folder.absolute().parent),
            experiment=self.folder.absolute().parent.name,
            run_hash=self.run,
            capture_terminal_logs=False,
        )
        return self.own | dict(init_kwargs=init | (self.own.get("init_kwargs") or {}))

    def begin(self, settings: dict, step: int) -> str:
        run = self.backend.experiment
        run.name = self.title
        super().begin(settings, step)
        return run.hash


_KINDS = {
    LocalVisBackend: LocalFile,
    TensorboardVisBackend: TensorBoard,
    WandbVisBackend: WandB,
    MLflowVisBackend: MLflow,
    AimVisBackend: Aim,
}


class Trackers:
    """All trackers of one stage, in the first process.

    If a tracker raises an error, it is left out from then on, with one warning. ``visualizer`` has the backends of the
    other trackers. MMEngine's Runner uses it too."""

    def __init__(self, config: dict | None, folder: Path):
        """config: ``visualizer`` of a `Stage`. folder: the stage's folder. Files go to ``<folder>/vis_data``."""
        self.file = folder / "vis_data" / RUNS
        runs = self._earlier_runs()
        self.trackers: dict[str, Tracker] = {}
        for entry in (config or {}).get("vis_backends", ()):
            own = copy.deepcopy(entry.to_dict())
            kind = VISBACKENDS.get(own["type"])
            tracker = _KINDS.get(kind, Tracker)(own, folder, runs.get(kind.__name__))
            tracker.backend = VISBACKENDS.build(dict(save_dir=str(self.file.parent)) | tracker.config())
            self.trackers[kind.__name__] = tracker
        backends = [tracker.backend for tracker in self.trackers.values()]
        name = f"{folder.name}_{time.time_ns()}"  # MMEngine's own name can be the same for two runs in one second
        self.visualizer = Visualizer.get_instance(name, vis_backends=backends)

    def _earlier_runs(self) -> dict:
        """Each tracker's name of an earlier run of the stage."""
        if not self.file.is_file():
            return {}
        try:
            return dict(json.loads(self.file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            logger.warning("%s cannot be read, so the trackers begin new runs: %s", self.file, error)
            return {}

    def begin(self, stage: Stage, step: int) -> None:
        """Begin the stage's run, or go on with it after ``step``. stage: its settings are logged as configuration."""
        runs = {}

        def open_one(tracker: Tracker) -> None:
            if step > 0 and not tracker.goes_on:
                logger.warning("%s cannot go on with an earlier run: it begins a new run", _name(tracker))
            settings = dict(settings_of(stage), work_dir=str(tracker.folder.absolute()))
            if (run := tracker.begin(settings, step)) is not None:
                runs[_name(tracker)] = run

        self._each(open_one)
        if runs:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.file, json.dumps(runs, indent=1) + "\n")

    def scalars(self, numbers: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.scalars(numbers, step))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Log an image: RGB, (height, width, 3), uint8."""
        self._each(lambda tracker: tracker.image(name, image, step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # no error of a tracker may end the run
                logger.warning(
                    "%s failed and gets no more logs of stage %s; training goes on (%s: %s)",
                    *(name, tracker.folder.name, type(error).__name__, str(error).partition("\n")[0]),
                )
                del self.trackers[name], self.visualizer._vis_backends[name]
                with suppress(Exception):  # close it for the next stage; the warning is logged above
                    tracker.close()


def _name(tracker: Tracker) -> str:
    return type(tracker.backend).__name__


def settings_of(stage: Stage) -> dict:
    """The full configuration of a stage, as plain dicts and lists."""
    others = {key: getattr(stage, key) for key in ("evaluation", "validation", "parallel")}
    return stage.to_dict() | {key: value.to_dict() for key, value in others.items() if value}


def draw_samples(stage: Stage, model, text_tokenizer, dataset) -> dict[str, np.ndarray]:
    """Draw sample images of an evaluation's data set for the trackers of a stage, see `sample_images`.

    In a process without trackers there are none. If they cannot be drawn, a warning says why, and the run goes on."""
    number = stage.visualizer.get("images", IMAGES) if stage.visualizer and is_main_process() else 0
    if number == 0:
        return {}
    live = LiveModel(
        model=model,
        text_tokenizer=text_tokenizer,
        template=stage.data.template,
        image_aspect=stage.data.image_aspect,
        precision=stage.optim.precision,
    )
    try:
        return sample_images(live, dataset, number)
    except Exception as error:  # no error in a plot may end the run
        logger.warning("sample images are not drawn: %s: %s", type(error).__name__, error)
        return {}
