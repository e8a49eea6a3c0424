"""lmms-eval's tasks by name, with the user's own and this library's beside them."""

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
    """manager: lmms-eval's index. members: by name of those that are to run, and of others that were found, the
    configurations of the task or of a group's tasks, and the yaml files that they are in."""

    manager: object
    members: dict[str, list[tuple[dict, Path]]]

    def missing(self, names: list[str]) -> dict[str, str]:
        """What to tell of each task whose data are not here."""
        found = {}
        for name in names:
            sets = [data for config, _ in self.members[name] if (data := data_set(name, config)) is not None]
            if lines := dict.fromkeys(text for data in sets if (text := data.absent()) is not None):
                found[name] = "\n".join(lines)
        return found

    def fingerprint(self, name: str) -> str:
        """Of configurations, the Python files beside them and beside those of their functions, and the data that are
        here (`DataSet.state`). Images that a file of questions names are not looked at."""
        digest = hashlib.sha256()
        for config, yaml in self.members[name]:
            data = data_set(name, config)
            code = dict.fromkeys([*sorted(yaml.parent.glob("*.py")), *task_code(config)])
            parts = [config, [sha256_of(file) for file in code], data.state() if data is not None else []]
            digest.update(json.dumps(parts, sort_keys=True, default=_text).encode())
        return digest.hexdigest()


def expand(names: list[str]) -> list[str]:
    """Each task once, with those of the preset ``paper`` in its place."""
    paper = [benchmark.task for benchmark in PAPER]
    return list(dict.fromkeys(task for name in names for task in (paper if name == PRESET else [name])))


def find_tasks(names: list[str], include_paths: list[Path], *, others: list[str] = ()) -> Tasks:
    """others: tasks that may be in none of the folders. Raises ``ValueError`` for a folder without tasks, and for names
    that are in none, with those alike."""
    import lmms_eval.models  # noqa: F401  (before the index is made: it lowers the voice of lmms-eval's log)
    import lmms_eval.tasks
    from lmms_eval.tasks import TaskManager

    for path in include_paths:
        if not any(path.rglob("*.yaml")):
            raise ValueError(f"--include-path {path}: expected a folder with lmms-eval tasks (*.yaml)")
    # The first that has a name gives it: a task of the user's may replace one of lmms-eval. Its own are 2,000 files,
    # which are read only where they are needed.
    folders = [str(path.absolute()) for path in (*include_paths, TASKS)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(manager.task_index.get(name, {}).get("type") != "task" for name in [*names, *others]):
        folders.append(str(Path(lmms_eval.tasks.__file__).parent))
        manager = TaskManager(include_path=folders, include_defaults=False)
    if unknown := [name for name in names if name not in manager.task_index]:
        alike = {name: difflib.get_close_matches(name, manager.all_tasks, n=4) for name in unknown}
        told = [name + (f" (alike: {', '.join(near)})" if near else "") for name, near in alike.items()]
        raise ValueError(f"lmms-eval has no task {'; '.join(told)}. Tasks of your own: --include-path FOLDER")
    found = [*names, *(name for name in others if name in manager.task_index)]
    return Tasks(manager, {name: _members(manager, name) for name in found})


def refuse_judged(tasks: Tasks, names: list[str]) -> None:
    """A GPT judge that cannot be reached leaves figures that look like results: raises ``ValueError`` for tasks that
    are known for one, or whose metrics are named after one, alone or in a group, where there is no key for it."""
    judged = dict.fromkeys(
        config["task"] for name in names for config, _ in tasks.members[name] if _asks_a_judge(config)
    )
    if judged and not (os.environ.get("OPENAI_API_KEY") or os.environ.get("AZURE_API_KEY")):
        told = "; ".join(name + (f" ({JUDGED[name]} measures without)" if name in JUDGED else "") for name in judged)
        raise ValueError(f"a GPT model judges the answers of {told}: set OPENAI_API_KEY, or take other tasks")


def _asks_a_judge(config: dict) -> bool:
    if config["task"] in JUDGED.values():  # one has kept its metric's name
        return False
    metrics = [entry["metric"] for entry in config.get("metric_list") or () if entry]  # lmms-eval has an empty one
    return config["task"] in JUDGED or any(JUDGES_METRIC.search(str(metric)) for metric in metrics)


def _members(manager, name: str) -> list[tuple[dict, Path]]:
    """Configurations come without their functions."""
    from lmms_eval.utils import load_yaml_config

    entry = manager.task_index[name]
    if entry["type"] == "tag":
        return [member for task in entry["task"] for member in _members(manager, task)]
    yaml = Path(entry["yaml_path"])
    config = load_yaml_config(str(yaml), mode="simple")
    return _of_group(manager, config, yaml) if entry["type"] == "group" else [(config, yaml)]


def _of_group(manager, group: dict, yaml: Path) -> list[tuple[dict, Path]]:
    """A group names tasks, or describes them: whole ones, other groups, or named ones with changes."""
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
    """A function's name in the yaml, whose node this is."""
    return node.value
