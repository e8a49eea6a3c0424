"""Lines that are told once, however often their place is reached: a run builds its models and data a dozen times."""

import logging

logger = logging.getLogger("asvr")
_told: set[str] = set()


def log_once(level: int, message: str, *args) -> None:
    """Log a line, unless it was logged since `forget` was called last."""
    text = message % args
    if logger.isEnabledFor(level) and text not in _told:
        _told.add(text)
        logger.log(level, "%s", text, stacklevel=2)


def forget() -> None:
    """Where a log begins: it gets every line, those too that a check told before there was one."""
    _told.clear()
