"""Tasks of lmms-eval as a metric of ``validation`` and ``evaluation``, on the model that trains."""

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

INSTALL = "metrics: LmmsEval needs lmms-eval, which is not installed: pip install -e '.[eval]'"
FOLDER = "lmms_eval"  # of a stage: the questions with the last answers, and what tasks write


@METRICS.register_module()
class LmmsEval(Metric):
    """Public benchmarks, or tasks of your own, through lmms-eval: ``lmms/<task>/<metric>`` of each number of a task.

    tasks: names of tasks or groups of lmms-eval, or ``paper``. limit: only the first questions of each task.
    batch_size: questions at once. include_paths: folders with tasks of your own.

    Of several processes each answers its share of the batches; the result is that of one process. A task that fails is
    a warning, and its numbers are missing.
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
        """Raises ``ValueError`` where lmms-eval, a task or the data of one are missing, or a judge cannot be asked."""
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
        with tempfile.TemporaryDirectory() as elsewhere:  # of several processes the first one writes
            out = folder / FOLDER if is_main_process() else Path(elsewhere)
            for name in self.tasks:
                try:
                    self.numbers |= self._ask_one(model, found, name, out)
                except Exception as error:  # whatever it is, the training is worth more
                    logger.warning("lmms-eval: task %s failed: %s: %s", name, type(error).__name__, error)

    def update(self, row: dict) -> None:
        """Answers to other questions do not matter here."""

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
                bootstrap_iters=0,  # standard errors, which take seconds
                distributed_executor_backend="torchrun",  # which makes no process groups of its own
                # What tasks read of lmms-eval's command line: where to write, and that scoring needs no images.
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
    """lmms-eval's ``metric,filter``: the filter's name is kept where there is one."""
    metric, _, name = key.partition(",")
    return metric if name == "none" else f"{metric}_{name}"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
