"""Visual tokenizers: they turn pixels into a grid of discrete codes."""

from asvr.models.tokenizers.base import VisualTokenizer
from asvr.models.tokenizers.pixel import PixelTokenizer
from asvr.models.tokenizers.product import ProductQuantizer
from asvr.models.tokenizers.quantizer import ResidualQuantizer
from asvr.models.tokenizers.semantic import SemanticTokenizer

__all__ = ["PixelTokenizer", "ProductQuantizer", "ResidualQuantizer", "SemanticTokenizer", "VisualTokenizer"]
