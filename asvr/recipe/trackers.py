"""Checks ``visualizer`` of a config: the trackers that get the logs of a run.

The value has one of three forms: the name of a tracker, a list of names or ``dict(type=..., ...)``, or
``dict(vis_backends=[...], images=4)``. A `Stage` has the last form, with MMEngine's names of the types.
"""

from importlib.util import find_spec
from typing import Any

from mmengine.config import ConfigDict

from asvr.base.text import nearest, short
from asvr.recipe.schema import count
from asvr.recipe.training import registered_component
from asvr.registry import VISBACKENDS

IMAGES = 4  # sample images of a validation or an evaluation
TRACKERS = dict(
    tensorboard="TensorboardVisBackend",
    wandb="WandbVisBackend",
    mlflow="MLflowVisBackend",
    aim="AimVisBackend",
    clearml="ClearMLVisBackend",
    neptune="NeptuneVisBackend",
    dvclive="DVCLiveVisBackend",
    local="LocalVisBackend",
)
_PACKAGES = {backend: name for name, backend in TRACKERS.items() if name != "local"}
_FORMS = "expected dict(vis_backends=[dict(type='wandb'), ...]), or only names: 'wandb', or ['tensorboard', 'wandb']"


def as_backends(value: Any) -> ConfigDict | None:
    """Convert any of the three forms to the last one. None if there is no tracker."""
    if not value:
        return None
    if not isinstance(value, dict):
        value = dict(vis_backends=[value] if isinstance(value, str) else value)
    return ConfigDict(dict(value, vis_backends=[_backend(entry) for entry in value["vis_backends"]]))


def _backend(entry: Any) -> Any:
    """The entry of one backend, with MMEngine's name of the type in place of ours."""
    if isinstance(entry, str):
        entry = dict(type=entry)
    if not isinstance(entry, dict):
        return entry
    kind = entry.get("type")
    return dict(entry, type=TRACKERS.get(kind, kind) if isinstance(kind, str) else kind)


def check_visualizer(value: Any) -> list[str]:
    """Return the problems of ``visualizer``, one line each."""
    long = isinstance(value, dict)
    entries = value.get("vis_backends") if long else [value] if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str | dict) for entry in entries):
        return [f"visualizer={short(value)}: {_FORMS}"]
    place = "visualizer.vis_backends" if long else "visualizer"
    problems = [
        f"visualizer.{name}: unknown field; known: vis_backends, images"
        for name in (value if long else ())
        if name not in ("vis_backends", "images")
    ]
    if long and not count(0).test(value.get("images", IMAGES)):
        problems.append(f"visualizer.images={short(value['images'])}: expected {count(0).expected}")
    for i, entry in enumerate(entries):
        problems += _entry(place if isinstance(value, str) else f"{place}[{i}]", entry)
    types = [_backend(entry).get("type") for entry in entries]
    if len(set(map(str, types))) < len(types):
        problems.append(f"{place}: each type may be given once; the types are {types}")
    return problems


def _entry(key: str, entry: str | dict) -> list[str]:
    """The problems of one entry. A name is one of `TRACKERS`, or the name of a registered class."""
    if isinstance(entry, str) and entry not in TRACKERS and (not entry or VISBACKENDS.get(entry) is None):
        return [f"{key}={entry!r}: no such tracker; {nearest(entry, TRACKERS)}"]
    own = _backend(entry)
    if not isinstance(own.get("init_kwargs") or {}, dict):
        return [f"{key}.init_kwargs={short(own['init_kwargs'])}: expected a dict of arguments of the tracker's init()"]
    return registered_component(key, own, VISBACKENDS)


def require_packages(visualizer: dict | None) -> None:
    """Raise ``ValueError`` if a tracker's package is not installed. Only a run that trains needs the packages.

    visualizer: the section of a `Stage`.
    """
    for entry in (visualizer or {}).get("vis_backends", ()):
        package = _PACKAGES.get(entry["type"])
        if package is not None and find_spec(package) is None:
            raise ValueError(f"visualizer: the tracker {package!r} needs {package}: pip install {package}")
