"""Room on the disk for what is about to be computed: told, and checked, before the work begins."""

import shutil
from pathlib import Path

from asvr.engine.log import logger


def require_room(folder: Path, needed: int, what: str, budget_gb: float | None = None) -> None:
    """Log what ``needed`` bytes of ``what`` are against the disk. budget_gb: ``data.cache_budget_gb``.

    Raises ``ValueError`` where they are more than that, or than what is free under ``folder``.
    """
    free = shutil.disk_usage(folder).free
    logger.info("%s: %.3g GB of disk, %.1f GB are free in %s", what, needed / 1e9, free / 1e9, folder)
    if budget_gb is not None and needed > budget_gb * 1e9:
        raise ValueError(f"{what} take {needed / 1e9:.3g} GB, more than data.cache_budget_gb={budget_gb}")
    if needed > free:
        raise ValueError(f"{folder}: {what} take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free: use another disk")
