"""Vision encoders: pixels in, a grid of features out."""

from asvr.models.encoders.base import Encoder
from asvr.models.encoders.huggingface import HFVisionEncoder
from asvr.models.encoders.naflex import NaFlexEncoder
from asvr.models.encoders.timm import TimmEncoder

__all__ = ["Encoder", "HFVisionEncoder", "NaFlexEncoder", "TimmEncoder"]
