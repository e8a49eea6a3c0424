"""How this process was started, from the launcher's variables. It works before the processes are joined."""

import os

# torchrun's variable -> srun's.
SLURM = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_STEP_NUM_TASKS", LOCAL_RANK="SLURM_LOCALID")


def started_as() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    for rank, world in (("RANK", "WORLD_SIZE"), (SLURM["RANK"], SLURM["WORLD_SIZE"])):
        if rank in os.environ:
            return int(os.environ[rank]), int(os.environ.get(world, "1"))
    return 0, 1
