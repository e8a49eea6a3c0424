"""A model that is asked while it trains."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class LiveModel:
    """A model in memory, with what it takes to ask it: the fields of `asvr.pretrained.Pretrained` of the same names.

    template, image_aspect: as in ``data`` of a config. precision: see `asvr.base.precision.computing_in`.
    """

    model: nn.Module
    text_tokenizer: Any
    template: str | dict
    image_aspect: str
    precision: str | None
