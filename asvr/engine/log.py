"""One logger: readable lines to the terminal (above a progress bar, if there is one) and to a file."""

import logging
import sys
import weakref
from pathlib import Path

from mmengine.dist import get_rank, is_main_process
from tqdm import tqdm

logger = logging.getLogger("asvr")
_bars: weakref.WeakSet = weakref.WeakSet()
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


def _of_rank(rank: int) -> logging.Formatter:
    return logging.Formatter(f"%(asctime)s process {rank}: %(message)s", "%H:%M:%S")


def progress_bar(*, disable: bool = False, **kwargs) -> tqdm:
    """A progress bar with rate and time left; where nobody watches a terminal, a line every ten seconds. Of several
    processes the first one's is shown."""
    bar = tqdm(mininterval=0.1 if sys.stderr.isatty() else 10, disable=disable or not is_main_process(), **kwargs)
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
    """Log to the terminal and append to ``file``; calling it again moves to another file. Of several processes the
    first one does; the others' warnings go to the terminal, with their rank."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if is_main_process():
        file.parent.mkdir(parents=True, exist_ok=True)
    for handler in (_TqdmHandler(), _FileHandler(file)) if is_main_process() else (_TqdmHandler(),):
        handler.setFormatter(_FORMAT if is_main_process() else _of_rank(get_rank()))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
    logger.propagate = False
