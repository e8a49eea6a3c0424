"""The visual tokens that carry a target's loss.

Legend: ``I`` images, ``N`` visual tokens of an image, ``P`` visual positions that carry the loss, ``K`` those of one
image.
"""

import numpy as np
from torch import Tensor

from asvr.data.batch import Batch, count_of_cells, drawn_sources, fixed_sources, visual_sources


class Positions:
    """The choice of the visual tokens that carry a target's loss.

    supervise: None: all tokens. ``K``: in each training step, ``K`` random tokens of each image; in evaluation, all.
    ``dict(every=k, first=0)``: every k-th token in raster order, starting with ``first``. ``dict(cells=[...])``: these
    tokens.

    Attributes. per_image: the number of tokens of an image. fixed: their indices if they are always the same, else
    None. Raises ``ValueError``, which names ``key``, for other values.
    """

    def __init__(self, supervise: int | dict | None, num_tokens: int, *, key: str):
        self.supervise, self.num_tokens = supervise, num_tokens
        self.drawn, self.fixed = None, None
        if isinstance(supervise, dict):
            cells = _cells(dict(supervise), num_tokens, key)
            self.fixed = np.array(cells)
        elif supervise is not None:
            if isinstance(supervise, bool) or not isinstance(supervise, int) or not 1 <= supervise <= num_tokens:
                raise ValueError(
                    f"{key}={supervise!r}: expected None (all), 1 to {num_tokens} tokens an image, dict(every=...) or "
                    "dict(cells=[...])"
                )
            self.drawn = supervise
        self.per_image = len(self.fixed) if self.fixed is not None else self.drawn or num_tokens

    def places(self, batch: Batch, shift: int, *, training: bool) -> tuple[Tensor, Tensor | None]:
        """Return ``source_P`` and ``token_P``, see `Target.places`."""
        if self.fixed is not None:
            return fixed_sources(batch, shift, self.fixed)
        if training and self.drawn is not None:
            return drawn_sources(batch, shift, self.drawn)
        return visual_sources(batch, shift)

    def count(self, window: list[Batch], shift: int, *, training: bool) -> float:
        """Count the tokens that carry the loss. If they are drawn, it is their expected number: so no bias arises."""
        if self.fixed is not None:
            return sum(count_of_cells(batch, shift, self.fixed) for batch in window)
        count = sum(batch.num_visual_targets(shift) for batch in window)
        return count * (self.drawn / self.num_tokens) if training and self.drawn is not None else count


def _cells(given: dict, num_tokens: int, key: str) -> list[int]:
    wrong = ValueError(
        f"{key}={given!r}: expected dict(every=k, first=i) or dict(cells=[...]), with cells from 0 to {num_tokens - 1}"
    )
    if given.keys() == {"cells"} and isinstance(given["cells"], list | tuple):
        cells = list(given["cells"])
    elif "every" in given and given.keys() <= {"every", "first"}:
        every, first = given["every"], given.get("first", 0)
        if not (_is_whole(every, 1) and _is_whole(first, 0)):
            raise wrong
        cells = list(range(first, num_tokens, every))
    else:
        raise wrong
    if not cells or len(set(cells)) < len(cells) or not all(_is_whole(cell, 0) and cell < num_tokens for cell in cells):
        raise wrong
    return cells


def _is_whole(value, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
