"""Schedules of the learning rate: presets, and MMEngine's parameter schedulers composed by a config."""

from mmengine.optim import OptimWrapper

from asvr.recipe.training import LENGTHS, PRESET
from asvr.registry import PARAM_SCHEDULERS


def build_schedulers(optim_wrapper: OptimWrapper, config: dict, steps: int) -> list:
    """config: ``schedule`` of the config. steps: of the stage. A scheduler is built where it covers a step at all."""
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
        raise ValueError(f"schedule.param_schedulers, of {steps} steps: {error}") from error


def preset(config: dict, steps: int) -> list[dict]:
    """A linear warm-up over ``warmup_ratio`` of the steps, then the ``preset``, which ends at ``min_lr_ratio`` of the
    peak: ``cosine``, ``linear``, ``constant``, or ``wsd``, constant and then linear over the last ``decay_ratio`` of
    the steps."""
    warmup, name, floor = (
        round(config["warmup_ratio"] * steps),
        config.get("preset", PRESET),
        config.get("min_lr_ratio", 0.0),
    )
    found = []
    if warmup:
        # `end` is the step after the last one that it changes: the peak, where the rest begins
        found.append(dict(type="LinearLR", start_factor=1 / (warmup + 1), end=warmup + 1))
    if name == "cosine" and steps > warmup:
        found.append(dict(type="CosineAnnealingLR", T_max=steps - warmup, eta_min_ratio=floor, begin=warmup))
    elif name in ("linear", "wsd"):
        decay = steps - warmup if name == "linear" else round(config["decay_ratio"] * steps)
        if decay:  # the floor is that of the step behind the last one, as the cosine's is
            line = dict(type="LinearLR", start_factor=1.0, end_factor=floor)
            found.append(dict(line, begin=steps - decay, end=steps + 1))
    return found


def _in_steps(entry: dict, steps: int) -> dict:
    """With lengths that are given as parts of all steps (numbers with a point) in steps."""

    def length(value):
        if isinstance(value, list | tuple):
            return [length(item) for item in value]
        return round(value * steps) if isinstance(value, float) else value

    return {key: length(value) if key in LENGTHS else value for key, value in entry.items()}
