"""Sends what a run logs to MMEngine's visualizer backends: TensorBoard, a local file, W&B, MLflow."""

import copy
import json
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend

from asvr.base import compat
from asvr.base.distributed import is_main_process
from asvr.base.files import replace_text
from asvr.registry import HOOKS

NOT_SCALARS = ("step", "steps")


def build_visualizer(name: str, config: dict, folder: Path) -> Visualizer:
    """config: ``visualizer`` of the config, whose backends write to ``<folder>/vis_data``. name: of no other visualizer
    of this process."""
    backends = copy.deepcopy(list(config["vis_backends"]))  # which MMEngine changes
    for i, backend in enumerate(backends):
        if backend["type"] == "MLflowVisBackend" and backend.get("tracking_uri") is None:
            backends[i] = backend | compat.mlflow_place(folder / "vis_data") | _given(backend)
    return Visualizer.get_instance(name, vis_backends=backends, save_dir=str(folder))


def _given(backend: dict) -> dict:
    return {key: value for key, value in backend.items() if value is not None}


def scalars(record: dict, prefix: str) -> dict[str, float]:
    """The numbers of a record, those in its dicts and lists too: ``{"acc": [1.0, 0.5]}`` -> ``<prefix>/acc/0``, ... A
    list of lists is a map, which is left out."""
    found = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= scalars(value, f"{prefix}/{key}")
        elif isinstance(value, list | tuple) and not any(isinstance(item, list | dict) for item in value):
            found |= scalars(dict(enumerate(value)), f"{prefix}/{key}")
        elif isinstance(value, int | float) and key not in NOT_SCALARS:
            found[f"{prefix}/{key}"] = value
    return found


def log_evaluation(config: dict, stage: dict, folder: Path, kind: str, result: dict, step: int) -> None:
    """The result of an evaluation, at the last step of its stage: a W&B or an MLflow run of its own. kind: what its
    numbers begin with."""
    visualizer = build_visualizer(f"evaluation_{time.time_ns()}", config, folder)
    visualizer.add_config(Config(dict(stage, work_dir=str(folder))))
    visualizer.add_scalars(scalars(result, kind), step=step)
    visualizer.close()


@HOOKS.register_module()
class VisualizerHook(Hook):
    """Sends what is logged to the backends of ``visualizer``: ``train/loss``, ``validation/accuracy`` and so on.

    A stage that goes on logs the steps behind its checkpoint again: of the earlier ones, a local file drops the lines
    and TensorBoard shows none; other backends get them twice. stage: its settings, for backends that keep them.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, *, stage: dict):
        self.stage = stage
        self.visualizer: Visualizer | None = None

    def before_train(self, runner) -> None:
        if is_main_process():
            self.visualizer = runner.visualizer
            for backend in self.visualizer._vis_backends.values():
                _forget_after(backend, runner.iter)
            self.visualizer.add_config(Config(dict(self.stage, work_dir=runner.work_dir)))

    def after_log(self, runner, kind: str, record: dict) -> None:
        self.visualizer.add_scalars(scalars(record, kind), step=record["step"])

    def after_train(self, runner) -> None:
        self.abandon()

    def abandon(self) -> None:
        if self.visualizer is not None:
            self.visualizer.close()


def _forget_after(backend: BaseVisBackend, step: int) -> None:
    """Drop what a run that was interrupted logged behind ``step``."""
    if isinstance(backend, LocalVisBackend):
        file = Path(backend.experiment._scalar_save_file)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            replace_text(file, "".join(f"{line}\n" for line in kept))
    elif isinstance(backend, TensorboardVisBackend) and any(Path(backend._save_dir).glob("events.*")):
        writer = backend.experiment
        writer.close()  # begins another file at the next scalar, whose first event hides later steps of the others
        writer.purge_step = step + 1
