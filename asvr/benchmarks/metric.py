"""A metric that runs tasks of lmms-eval on the model in training, for ``validation`` and ``evaluation``."""

import importlib.util
import math
import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from asvr.base.compat import one_process_for_lmms_eval, read_downloaded_datasets
from asvr.base.distributed import is_main_process
from asvr.base.log import logger
from asvr.benchmarks.data_files import MissingData, found_folder
from asvr.benchmarks.samples import write_samples
from asvr.benchmarks.task_files import Tasks, expand, find_tasks, refuse_judged
from asvr.evaluation.live import LiveModel
from asvr.evaluation.metrics import Metric
from asvr.registry import METRICS

INSTALL = "metrics: LmmsEval needs lmms-eval, which is not installed: pip install 'asvr[eval]'"
FOLDER = "lmms_eval"  # in the stage's folder: the questions with the last answers, and files of tasks


@METRICS.register_module()
class LmmsEval(Metric):
    """Runs public benchmarks, or tasks of your own, through lmms-eval. Its numbers are ``lmms/<task>/<metric>``.

    tasks: names of tasks or groups of lmms-eval, or ``paper``. limit: ask only this many questions of each task, the
    first ones. batch_size: the number of questions that are answered at once. include_paths: folders with tasks of your
    own.

    Several processes share the batches. The result is the same as that of one process. If a task fails, there is a
    warning, and its numbers are missing.
    """

    def __init__(
        self, *, tasks: Sequence[str], limit: int | None = None, batch_size: int = 1, include_paths: Sequence[str] = ()
    ):
        if isinstance(tasks, str) or not tasks:
            raise ValueError(f"metrics: LmmsEval.tasks={tasks!r}: expected a list of lmms-eval's tasks, ['mme']")
        self.tasks, self.limit, self.batch_size = expand(list(tasks)), limit, batch_size
        self.include_paths = [Path(path) for path in include_paths]
        self.numbers: dict[str, float] = {}

    def check(self) -> list[str]:
        """Raise ``ValueError`` if lmms-eval, a task or its data are missing, or if a judge is needed and has no key."""
        found = self._find()
        refuse_judged(found, self.tasks)
        missing = {} if os.environ.get("ASVR_DOWNLOAD") == "1" else found.missing(self.tasks)
        if missing:
            raise MissingData(missing, [])
        configs = [config for members in found.members.values() for config, _ in members]
        return [
            f"lmms/{config['task']}/{entry['metric']}"
            for config in configs
            for entry in config.get("metric_list") or ()
            if entry
        ]

    def ask(self, live: LiveModel, folder: Path) -> None:
        found = self._find()
        from asvr.benchmarks.lmms_eval import Asvr
        from asvr.pretrained import Pretrained

        pretrained = Pretrained(config={}, **vars(live))
        model = Asvr(pretrained=pretrained, batch_size=self.batch_size, shared=True)
        with tempfile.TemporaryDirectory() as elsewhere:  # only the first process writes
            out = folder / FOLDER if is_main_process() else Path(elsewhere)
            for name in self.tasks:
                try:
                    self.numbers |= self._ask_one(model, found, name, out)
                except Exception as error:  # a task may raise anything, and the training must go on
                    logger.warning("lmms-eval: task %s failed: %s: %s", name, type(error).__name__, error)

    def update(self, row: dict) -> None:
        """Ignore the answers to the config's own questions."""

    def compute(self) -> dict[str, float]:
        return self.numbers

    def _find(self) -> Tasks:
        if importlib.util.find_spec("lmms_eval") is None:
            raise ValueError(INSTALL)
        return find_tasks(self.tasks, self.include_paths)

    def _ask_one(self, model, found: Tasks, name: str, out: Path) -> dict[str, float]:
        from lmms_eval.evaluator import simple_evaluate

        with one_process_for_lmms_eval(), read_downloaded_datasets(found_folder):
            result = simple_evaluate(
                model=model,
                tasks=[name],
                task_manager=found.manager,
                limit=self.limit,
                batch_size=self.batch_size,
                bootstrap_iters=0,  # no standard errors, because they take seconds
                distributed_executor_backend="torchrun",  # this backend makes no process groups of its own
                # Tasks read two options of lmms-eval's command line: where to write, and that scoring needs no images.
                cli_args=Namespace(output_path=str(out), process_with_media=False),
            )
        write_samples(result["samples"], out)
        return {
            f"lmms/{task}/{_metric(key)}": value
            for task, numbers in result["results"].items()
            for key, value in numbers.items()
            if "," in key and "_stderr" not in key and _is_number(value)
        }


def _metric(key: str) -> str:
    """The name of a number from lmms-eval's ``metric,filter``. The filter's name is kept if there is one."""
    metric, _, name = key.partition(",")
    return metric if name == "none" else f"{metric}_{name}"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
