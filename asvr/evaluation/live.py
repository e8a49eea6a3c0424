"""A model that answers questions while it is trained."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class LiveModel:
    """A model in memory, with everything that is needed to ask it. It has some fields of `asvr.pretrained.Pretrained`.

    template, image_aspect: as in ``data`` of a config. precision: see `asvr.base.precision.computing_in`.
    """

    model: nn.Module
    text_tokenizer: Any
    template: str | dict
    image_aspect: str
    precision: str | None
