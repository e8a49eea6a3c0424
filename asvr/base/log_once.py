"""Log lines that appear once, though a run builds its models and data many times."""

import logging

logger = logging.getLogger("asvr")
_logged: set[str] = set()


def log_once(level: int, message: str, *args) -> None:
    """Log a line, unless it was logged since `forget` was called last."""
    text = message % args
    if logger.isEnabledFor(level) and text not in _logged:
        _logged.add(text)
        logger.log(level, "%s", text, stacklevel=2)


def forget() -> None:
    """Forget all lines, when a log file begins: it gets every line, even if it was logged before."""
    _logged.clear()
