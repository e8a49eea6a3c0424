"""Saves and restores the states of the random number generators, in one or several processes."""

import random

import numpy as np
import torch
from mmengine import dist

from asvr.base.log import logger


def random_state() -> dict:
    """The random states of this process, as tensors and plain values."""
    version, key, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=[version, list(key), gauss],
        numpy=[kind, keys.tolist(), position, has_gauss, cached],
        torch=torch.get_rng_state(),
        cuda=_cuda_random_states(),
    )


def _cuda_random_states() -> list[torch.Tensor]:
    """The states of all GPUs; with several processes, only of the process's own GPU.

    Otherwise each process would take memory on all GPUs."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_rng_state()] if dist.get_world_size() > 1 else torch.cuda.get_rng_state_all()


def set_random_state(state: dict) -> None:
    version, key, gauss = state["python"]
    random.setstate((version, tuple(key), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and dist.get_world_size() > 1:
        torch.cuda.set_rng_state(state["cuda"][0])
    elif state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def random_states() -> list[dict]:
    """The random states of all processes, by rank. Every process calls it."""
    return dist.all_gather_object(random_state())


def restore_random_states(states: list[dict], *, seed: int, step: int) -> None:
    """Give each process its own of ``states``. If the number of processes has changed, all draw new states."""
    if len(states) == dist.get_world_size():
        set_random_state(states[dist.get_rank()])
        return
    logger.info(
        "%d processes made the checkpoint, %d go on: new random states are drawn from seed %d, rank and step %d",
        *(len(states), dist.get_world_size(), seed, step),
    )
    drawn = int(np.random.SeedSequence([seed, dist.get_rank(), step]).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
