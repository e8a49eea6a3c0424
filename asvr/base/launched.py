"""How this process was started, as its launcher tells it: light, and known before the processes are joined."""

import os

# srun's name for each of torchrun's.
SLURM = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_STEP_NUM_TASKS", LOCAL_RANK="SLURM_LOCALID")


def started_as() -> tuple[int, int]:
    """This process's rank, and how many were started together."""
    for rank, world in (("RANK", "WORLD_SIZE"), (SLURM["RANK"], SLURM["WORLD_SIZE"])):
        if rank in os.environ:
            return int(os.environ[rank]), int(os.environ.get(world, "1"))
    return 0, 1
