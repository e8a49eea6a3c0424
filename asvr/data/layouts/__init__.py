"""Layouts: they decide the visual tokens of an image from its size."""

from asvr.data.layouts.anyres import AnyRes
from asvr.data.layouts.base import (
    Grid,
    ImageLayout,
    Layout,
    Size,
    WholeImage,
    build_layout,
    crop_keys,
    layout_config,
    tokens_of_images,
)

__all__ = [
    "AnyRes",
    "Grid",
    "ImageLayout",
    "Layout",
    "Size",
    "WholeImage",
    "build_layout",
    "crop_keys",
    "layout_config",
    "tokens_of_images",
]
