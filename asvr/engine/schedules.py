"""Builds schedules of the learning rate: presets, or MMEngine's parameter schedulers from a config."""

from mmengine.optim import OptimWrapper

from asvr.recipe.training import LENGTHS, PRESET
from asvr.registry import PARAM_SCHEDULERS


def build_schedulers(optim_wrapper: OptimWrapper, config: dict, steps: int) -> list:
    """Build the schedulers of a stage. Those that cover no step are left out.

    config: ``schedule`` of the config. steps: the number of steps of the stage."""
    entries = config.get("param_schedulers")
    entries = preset(config, steps) if entries is None else [_in_steps(entry, steps) for entry in entries]
    built = [dict(dict(begin=0, end=steps, by_epoch=False), **entry) for entry in entries]
    try:
        return [
            PARAM_SCHEDULERS.build(entry, default_args=dict(optimizer=optim_wrapper))
            for entry in built
            if entry["begin"] < entry["end"]
        ]
    except (ValueError, TypeError) as error:
        raise ValueError(f"schedule.param_schedulers, with {steps} steps: {error}") from error


def preset(config: dict, steps: int) -> list[dict]:
    """The schedulers of a preset: a linear warm-up over ``warmup_ratio`` of the steps, then the ``preset``.

    It is ``cosine``, ``linear``, ``constant`` or ``wsd``, and ends at ``min_lr_ratio`` of the peak. ``wsd`` is constant
    and then falls linearly over the last ``decay_ratio`` of the steps."""
    warmup, name, floor = (
        round(config["warmup_ratio"] * steps),
        config.get("preset", PRESET),
        config.get("min_lr_ratio", 0.0),
    )
    found = []
    if warmup:
        # `end` is the step after the last one that it changes. At that step the rate is at its peak.
        found.append(dict(type="LinearLR", start_factor=1 / (warmup + 1), end=warmup + 1))
    if name == "cosine" and steps > warmup:
        found.append(dict(type="CosineAnnealingLR", T_max=steps - warmup, eta_min_ratio=floor, begin=warmup))
    elif name in ("linear", "wsd"):
        decay = steps - warmup if name == "linear" else round(config["decay_ratio"] * steps)
        if decay:  # as with the cosine, the floor is reached at the step after the last one
            line = dict(type="LinearLR", start_factor=1.0, end_factor=floor)
            found.append(dict(line, begin=steps - decay, end=steps + 1))
    return found


def _in_steps(entry: dict, steps: int) -> dict:
    """The entry with lengths in steps. In a config, a length with a decimal point is a fraction of all steps."""

    def length(value):
        if isinstance(value, list | tuple):
            return [length(item) for item in value]
        return round(value * steps) if isinstance(value, float) else value

    return {key: length(value) if key in LENGTHS else value for key, value in entry.items()}
