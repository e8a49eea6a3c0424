"""Vision encoders: they turn pixels into a grid of features."""

from asvr.models.encoders.base import Encoder
from asvr.models.encoders.codes import CodeEncoder
from asvr.models.encoders.huggingface import HFVisionEncoder
from asvr.models.encoders.latents import LatentEncoder
from asvr.models.encoders.multi import MultiEncoder
from asvr.models.encoders.naflex import NaFlexEncoder
from asvr.models.encoders.s2 import S2
from asvr.models.encoders.timm import TimmEncoder

__all__ = [
    "S2",
    "CodeEncoder",
    "Encoder",
    "HFVisionEncoder",
    "LatentEncoder",
    "MultiEncoder",
    "NaFlexEncoder",
    "TimmEncoder",
]
