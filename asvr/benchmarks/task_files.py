"""Find tasks by name: those of lmms-eval, of the user, and of this library."""

import difflib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from asvr.base.files import sha256_of
from asvr.benchmarks.data_files import data_set
from asvr.benchmarks.paper import JUDGED, JUDGES_METRIC, PAPER, TASKS
from asvr.benchmarks.task_code import task_code

PRESET = "paper"


@dataclass(frozen=True)
class Tasks:
    """Tasks that were found.

    manager: lmms-eval's index. members: by name, the configurations of a task or of the tasks of a group, each with its
    yaml file.
    """

    manager: object
    members: dict[str, list[tuple[dict, Path]]]

    def missing(self, names: list[str]) -> dict[str, str]:
        """A message for each task whose data are not on this machine."""
        found = {}
        for name in names:
            sets = [data for config, _ in self.members[name] if (data := data_set(name, config)) is not None]
            if lines := dict.fromkeys(text for data in sets if (text := data.absent()) is not None):
                found[name] = "\n".join(lines)
        return found

    def fingerprint(self, name: str) -> str:
        """A hash of the task.

        It covers configurations, Python files beside them and beside their functions, and the data on this machine
        (`DataSet.state`). It does not cover the images that a file of questions names.
        """
        digest = hashlib.sha256()
        for config, yaml in self.members[name]:
            data = data_set(name, config)
            code = dict.fromkeys([*sorted(yaml.parent.glob("*.py")), *task_code(config)])
            parts = [config, [sha256_of(file) for file in code], data.state() if data is not None else []]
            digest.update(json.dumps(parts, sort_keys=True, default=_text).encode())
        return digest.hexdigest()


def expand(names: list[str]) -> list[str]:
    """The names without duplicates. The preset ``paper`` is replaced by its tasks."""
    paper = [benchmark.task for benchmark in PAPER]
    return list(dict.fromkeys(task for name in names for task in (paper if name == PRESET else [name])))


def find_tasks(names: list[str], include_paths: list[Path], *, others: list[str] = ()) -> Tasks:
    """Find tasks. others: tasks that may be missing.

    Raises ``ValueError`` for a folder without tasks, and for unknown names, with names that are similar.
    """
    import lmms_eval.models  # noqa: F401  (before the index is made: it makes lmms-eval log less)
    import lmms_eval.tasks
    from lmms_eval.tasks import TaskManager

    for path in include_paths:
        if not any(path.rglob("*.yaml")):
            raise ValueError(f"--include-path {path}: expected a folder with lmms-eval tasks (*.yaml)")
    # The first folder that has a name counts. So a user's task may replace one of lmms-eval. lmms-eval's own tasks are
    # 2,000 files. They are read only if they are needed.
    folders = [str(path.absolute()) for path in (*include_paths, TASKS)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(manager.task_index.get(name, {}).get("type") != "task" for name in [*names, *others]):
        folders.append(str(Path(lmms_eval.tasks.__file__).parent))
        manager = TaskManager(include_path=folders, include_defaults=False)
    if unknown := [name for name in names if name not in manager.task_index]:
        alike = {name: difflib.get_close_matches(name, manager.all_tasks, n=4) for name in unknown}
        listed = [name + (f" (alike: {', '.join(near)})" if near else "") for name, near in alike.items()]
        raise ValueError(f"lmms-eval has no task {'; '.join(listed)}. Tasks of your own: --include-path FOLDER")
    found = [*names, *(name for name in others if name in manager.task_index)]
    return Tasks(manager, {name: _members(manager, name) for name in found})


def refuse_judged(tasks: Tasks, names: list[str]) -> None:
    """Raise ``ValueError`` for tasks that need a GPT judge, if there is no key for it.

    Without a judge such tasks give numbers that look like results. They are known by their name, or by the names of
    their metrics.
    """
    judged = dict.fromkeys(
        config["task"] for name in names for config, _ in tasks.members[name] if _asks_a_judge(config)
    )
    if judged and not (os.environ.get("OPENAI_API_KEY") or os.environ.get("AZURE_API_KEY")):
        listed = "; ".join(name + (f" ({JUDGED[name]} measures without)" if name in JUDGED else "") for name in judged)
        raise ValueError(f"a GPT model judges the answers of {listed}: set OPENAI_API_KEY, or take other tasks")


def _asks_a_judge(config: dict) -> bool:
    if config["task"] in JUDGED.values():  # these need no judge, but one still has the metric's old name
        return False
    metrics = [entry["metric"] for entry in config.get("metric_list") or () if entry]  # lmms-eval has an empty one
    return config["task"] in JUDGED or any(JUDGES_METRIC.search(str(metric)) for metric in metrics)


def _members(manager, name: str) -> list[tuple[dict, Path]]:
    """The configurations of a task, a group or a tag, each with its yaml file. Functions in them are not imported."""
    from lmms_eval.utils import load_yaml_config

    entry = manager.task_index[name]
    if entry["type"] == "tag":
        return [member for task in entry["task"] for member in _members(manager, task)]
    yaml = Path(entry["yaml_path"])
    config = load_yaml_config(str(yaml), mode="simple")
    return _of_group(manager, config, yaml) if entry["type"] == "group" else [(config, yaml)]


def _of_group(manager, group: dict, yaml: Path) -> list[tuple[dict, Path]]:
    """The configurations of a group. It names tasks or other groups, describes tasks, or changes named tasks."""
    found = []
    for entry in group["task"]:
        own = entry if isinstance(entry, dict) else dict(task=entry)
        if isinstance(own["task"], list):
            found += _of_group(manager, own, yaml)
        elif own["task"] in manager.task_index:
            found += [(given | own, file) for given, file in _members(manager, own["task"])]
        else:
            found.append((own, yaml))
    return found


def _text(node) -> str:
    """The name of a function in the yaml. node: its yaml node."""
    return node.value
