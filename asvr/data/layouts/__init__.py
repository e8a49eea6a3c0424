"""Layouts: the visual tokens of an image, by its size."""

from asvr.data.layouts.base import (
    FixedTokens,
    Grid,
    ImageLayout,
    Layout,
    Size,
    WholeImage,
    build_layout,
    crop_keys,
    tokens_of_images,
)

__all__ = [
    "FixedTokens",
    "Grid",
    "ImageLayout",
    "Layout",
    "Size",
    "WholeImage",
    "build_layout",
    "crop_keys",
    "tokens_of_images",
]
