"""What all figures have in common: they show text of the user's, and nothing is lost where one cannot be made."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

from asvr.base.log import logger
from asvr.base.text import printable

LONGEST = 200  # characters


def plain(text: object) -> str:
    """Text that matplotlib draws as it stands: dollars begin no formula, what cannot be drawn is an escape."""
    shown = printable(str(text))
    return (shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…").replace("$", r"\$")


def scale_by_logarithm(axis) -> None:
    """The y axis, where anything on it has a logarithm: matplotlib cannot draw it otherwise."""
    if isfinite(axis.dataLim.minposy):
        axis.set_yscale("log")


@contextmanager
def optional(file: Path) -> Iterator[None]:
    """For a block that draws ``file`` from results that are written already: where it fails, a warning says why."""
    try:
        yield
    except Exception as error:  # whatever it is, the results are worth more
        logger.warning("%s is not drawn: %s: %s", file, type(error).__name__, error)
