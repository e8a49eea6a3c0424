"""Visual heads: from the LLM's hidden states to the codes of the image."""

from asvr.models.heads.base import Head
from asvr.models.heads.depth_transformer import DepthTransformerHead, ReleasedHead
from asvr.models.heads.linear import LinearHead

__all__ = ["DepthTransformerHead", "Head", "LinearHead", "ReleasedHead"]
