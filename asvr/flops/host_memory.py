"""The memory of a machine's CPU that ``parallel.cpu_offload`` takes, against what the machine has."""

import platform
from collections import Counter

from asvr.base.distributed import gather, get_world_size, is_main_process
from asvr.base.free_memory import USABLE, machine_bytes
from asvr.base.log import logger
from asvr.flops.sharded import offloads
from asvr.flops.states import States, states_of
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage

GB = 1e9
HOST_USABLE = USABLE["cpu"]


def fits_host(needed: float, room: float) -> bool:
    """Whether states fit a machine. room: the bytes of its memory. Libraries, data loading, the file cache and the
    rounding of pinned memory take the rest."""
    return needed <= HOST_USABLE * room


def require_offload(recipe: Recipe, host_memory: float | None) -> None:
    """Raise ``ValueError`` if ``--host-memory`` was given and no stage holds states in the CPU's memory."""
    if host_memory is None:
        return
    if host_memory <= 0:
        raise ValueError(f"--host-memory {host_memory:g}: expected a number above 0")
    if not any(offloads(stage) for stage in recipe.stages.values()):
        raise ValueError("--host-memory has no effect: no stage has parallel.cpu_offload=True; leave it out")


def host_room(host_memory: float | None) -> float | None:
    """The bytes of a machine's CPU memory: ``--host-memory`` in GB, else that of this machine, if it says it."""
    return machine_bytes() if host_memory is None else host_memory * GB


def held_on_host(stage: Stage, states: States, processes: int, here: int) -> int:
    """Bytes of a stage's states in the CPU's memory of a machine that runs ``here`` of all ``processes``."""
    return here * states.share(stage.parallel.get("shard") or processes) if offloads(stage) else 0


def warn_of_host_memory(recipe: Recipe) -> None:
    """Warn at the beginning of a run if a stage holds more in the CPU's memory than the smallest machine has.

    Every process calls it, and the first one warns."""
    stages = {name: stage for name, stage in recipe.stages.items() if offloads(stage)}
    if not stages:
        return
    machines = Counter(gather((platform.node(), machine_bytes())))
    if not is_main_process() or any(room is None for _, room in machines):
        return
    for name, stage in stages.items():
        states = states_of(stage, build_meta(stage))
        needs = [(held_on_host(stage, states, get_world_size(), here), room) for (_, room), here in machines.items()]
        needed, room = max(needs, key=lambda pair: pair[0] / pair[1])
        if not fits_host(needed, room):
            logger.warning(
                "stage %s holds %.1f GB of weights, gradients and optimiser state in the CPU's memory of a machine "
                "(parallel.cpu_offload), which has %.1f GB: it is likely to be killed. Use more machines, or set "
                "parallel.frozen='replicate' or optim.moments='bfloat16', or train fewer weights",
                name,
                needed / GB,
                room / GB,
            )
