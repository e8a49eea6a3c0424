"""One logger: readable lines to the terminal (above a progress bar, if there is one) and to a file."""

import logging
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("asvr")
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def set_up_logging(file: Path) -> None:
    """Log to the terminal and append to ``file``; calling it again moves to another file."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    for handler in (_TqdmHandler(), logging.FileHandler(file)):
        handler.setFormatter(_FORMAT)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
