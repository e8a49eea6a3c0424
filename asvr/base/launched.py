"""How this process was started, from the launcher's variables. It works before the processes are joined."""

import os
from math import ceil

# torchrun's variable -> srun's.
SLURM = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_STEP_NUM_TASKS", LOCAL_RANK="SLURM_LOCALID")


def processes_here() -> int:
    """The number of processes of the run on this machine.

    ``torchrun`` says it. ``srun`` says the numbers of processes and of nodes; the fullest node counts."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    return ceil(int(os.environ.get(SLURM["WORLD_SIZE"], "1")) / nodes)


def started_as() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    for rank, world in (("RANK", "WORLD_SIZE"), (SLURM["RANK"], SLURM["WORLD_SIZE"])):
        if rank in os.environ:
            return int(os.environ[rank]), int(os.environ.get(world, "1"))
    return 0, 1
