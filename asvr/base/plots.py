"""Helpers for all figures: safe text, and no lost results if a figure cannot be drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

from asvr.base.log import logger
from asvr.base.text import printable

LONGEST = 200  # characters


def plain(text: object) -> str:
    """Text that matplotlib draws as it is: dollar signs begin no formula, and unprintable characters are escaped."""
    shown = printable(str(text))
    return (shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…").replace("$", r"\$")


def scale_by_logarithm(axis) -> None:
    """Use a logarithmic y axis if it has any positive value; matplotlib cannot draw one otherwise."""
    if not isfinite(axis.dataLim.minposy):
        return
    from matplotlib.ticker import LogFormatter  # here: matplotlib takes a second to import

    class Decimal(LogFormatter):
        """Labels the same ticks as matplotlib does, but as ``0.6`` and not as ``6 x 10^-1``."""

        def __call__(self, x, pos=None):
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(Decimal())
    axis.yaxis.set_minor_formatter(Decimal(labelOnlyBase=False))


@contextmanager
def optional(file: Path) -> Iterator[None]:
    """Run a block that draws ``file`` from saved results. If it fails, a warning says why."""
    try:
        yield
    except Exception as error:  # of any kind: the results must not be lost
        logger.warning("%s was not drawn: %s: %s", file, type(error).__name__, error)
