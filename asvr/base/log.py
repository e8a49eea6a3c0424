"""The logger of the library. It writes to the terminal, above a progress bar if there is one, and to a file."""

import logging
import sys
import weakref
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path

from mmengine.dist import get_rank, is_main_process
from tqdm import tqdm
from tqdm.utils import ObjectWrapper

from asvr.base.disk import full_disk, naming
from asvr.base.log_once import forget

logger = logging.getLogger("asvr")
_bars: weakref.WeakSet = weakref.WeakSet()
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


def _of_rank(rank: int) -> logging.Formatter:
    return logging.Formatter(f"%(asctime)s process {rank}: %(message)s", "%H:%M:%S")


def progress_bar(*, disable: bool = False, **kwargs) -> tqdm:
    """A progress bar with rate and remaining time; without a terminal, a line every ten seconds. Only the first process
    shows it."""
    terminal = Terminal(sys.stderr)
    hidden = disable or not is_main_process()
    bar = tqdm(mininterval=0.1 if terminal.isatty() else 10, disable=hidden, file=terminal, **kwargs)
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Close all progress bars before an error message, so that it gets its own line."""
    for bar in list(_bars):
        bar.close()


class Terminal(ObjectWrapper):
    """A stream for people. Writing to it never ends a run.

    Characters that its encoding lacks are written as escapes. Output to a closed terminal or pipe is lost."""

    def __init__(self, stream):
        super().__init__(stream)
        self.wrapper_setattr("encoding", getattr(stream, "encoding", None) or "utf-8")

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed stream raises ValueError
            self._wrapped.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._wrapped.flush()

    def __eq__(self, other) -> bool:  # tqdm uses it to find the bars to clear before a line
        return self._wrapped == getattr(other, "_wrapped", other)

    __hash__ = None


class _ToStderr:
    """Reports a log line that cannot be formatted on stderr, as logging's own handlers do. That is our mistake."""

    def handleError(self, record: logging.LogRecord) -> None:
        with redirect_stderr(Terminal(sys.stderr)):
            super().handleError(record)


class _TqdmHandler(_ToStderr, logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=Terminal(sys.stdout))
        except Exception:
            self.handleError(record)


class _FileHandler(_ToStderr, logging.FileHandler):
    """A log file that ends the run if the disk is full. logging itself would print a traceback for each line."""

    def __init__(self, file: Path):
        super().__init__(file, encoding="utf-8", errors="backslashreplace")  # file names may not be UTF-8

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            return super().handleError(record)
        with naming(Path(self.baseFilename)):
            raise error


def _opened(file: Path) -> logging.Handler:
    """Raises ``ValueError`` where the folder of ``file`` cannot be made or written to."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _FileHandler(file)
    except OSError as error:
        if full_disk(error) is not None:
            raise
        raise ValueError(
            f"{file.parent}: nothing can be written there ({error.strerror}): give another folder with --work-dir"
        ) from error


def set_up_logging(file: Path, earlier: Sequence[str] = ()) -> None:
    """Log to the terminal and append to ``file``. Another call changes the file.

    earlier: warnings that the terminal has already shown, for the file alone. Only the first process logs everything.
    The other processes write warnings to the terminal, with their rank."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    for handler in (_TqdmHandler(), _opened(file)) if is_main_process() else (_TqdmHandler(),):
        handler.setFormatter(_FORMAT if is_main_process() else _of_rank(get_rank()))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
    logger.propagate = False
    for line in earlier if is_main_process() else ():
        logger.handlers[-1].handle(logger.makeRecord(logger.name, logging.WARNING, "", 0, "%s", (line,), None))
    forget()
