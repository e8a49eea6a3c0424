"""One logger: readable lines to the terminal (above a progress bar, if there is one) and to a file."""

import logging
import sys
import weakref
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("asvr")
_bars: weakref.WeakSet = weakref.WeakSet()
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


def progress_bar(**kwargs) -> tqdm:
    """A progress bar with rate and time left; where nobody watches a terminal, a line every ten seconds."""
    bar = tqdm(mininterval=0.1 if sys.stderr.isatty() else 10, **kwargs)
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Where an error ends a run, so that what is told has a line of its own."""
    for bar in list(_bars):
        bar.close()


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _FileHandler(logging.FileHandler):
    """A line that cannot be written ends the run; logging itself would print a traceback for each and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            return super().handleError(record)
        from asvr.data.disk import naming  # here: it logs

        with naming(Path(self.baseFilename)):
            raise error


def set_up_logging(file: Path) -> None:
    """Log to the terminal and append to ``file``; calling it again moves to another file."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    for handler in (_TqdmHandler(), _FileHandler(file)):
        handler.setFormatter(_FORMAT)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
