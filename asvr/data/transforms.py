"""Image transforms: they turn an image into the pixels that an encoder or a visual tokenizer expects."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

# Largest side in pixels of intermediate images: a square takes 256 MB. A very long image would make them huge.
LONGEST_SIDE = 8192
ASPECTS = ("square", "pad", "resize")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImageTransform:
    """Resize with PIL, scale to [0, 1] and normalise, as Hugging Face's slow image processors do.

    size: (height, width) in pixels. center_crop: True if the model's own processor resizes the short side and crops
    (CLIP), False if it squeezes the image (SigLIP). ``aspect="square"`` follows it.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    center_crop: bool = False

    def __call__(self, image: Image.Image, aspect: str = "square") -> torch.Tensor:
        """Return (3, h, w) float32.

        aspect: ``square`` does as the model's own processor. ``pad`` first pads the image to a square with the mean
        colour (LLaVA-1.5's finetune). ``resize`` squeezes the image, whatever the processor does.
        """
        if aspect not in ASPECTS:
            raise ValueError(f"image_aspect={aspect!r} is unknown: expected one of {', '.join(map(repr, ASPECTS))}")
        image = image.convert("RGB")
        if aspect == "pad":
            image = pad_to_square(image, tuple(int(m * 255) for m in self.mean))
        if aspect != "resize" and self.center_crop:
            image = _resize_and_crop(image, self.size, RESAMPLING[self.interpolation])
        else:
            image = image.resize(self.size[::-1], RESAMPLING[self.interpolation])
        pixels = normalised(image, self.mean, self.std)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def normalised(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """The normalised pixels, (h, w, 3) float32."""
    # NumPy, not torch: torch would start its threads for every small image.
    pixels = np.array(image, dtype=np.float32) / np.float32(255)
    return (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)


def pad_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """Centre an image on a square of ``color`` (LLaVA's ``expand2square``). Larger images are first reduced to
    ``LONGEST_SIDE``."""
    if max(image.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(image.size)
        image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BICUBIC)
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _resize_and_crop(image: Image.Image, size: tuple[int, int], resampling) -> Image.Image:
    height, width = size
    if height * image.width >= width * image.height:  # integers: a rounded scale sometimes loses a pixel
        resized = (max(width, height * image.width // image.height), height)
    else:
        resized = (width, max(height, width * image.height // image.width))
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    if max(resized) > LONGEST_SIDE:  # only the cropped part is computed
        across, down = image.width / resized[0], image.height / resized[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), resampling, box=box)
    return image.resize(resized, resampling).crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class JoinedTransform:
    """Several transforms of one image, for an encoder made of others. Their pixels have numbers: ``{"0": ...}``.

    parts: tuple of `ImageTransform`, or of other transforms whose output shape is the same for all images.
    """

    parts: tuple

    def __call__(self, image: Image.Image, aspect: str = "square") -> dict:
        return {str(i): part(image, aspect) for i, part in enumerate(self.parts)}

    def blank(self, images: int) -> dict:
        return {str(i): blank_pixels(part, images) for i, part in enumerate(self.parts)}

    @property
    def size(self) -> tuple[int, int]:
        """The largest height and width of the parts."""
        heights, widths = zip(*(part.size for part in self.parts), strict=True)
        return max(heights), max(widths)

    @property
    def shown(self) -> ImageTransform:
        """The transform for showing the image: the first, since the encoder has its grid."""
        return getattr(self.parts[0], "shown", self.parts[0])


# The stacked outputs of transforms: a tensor, or a dict of tensors and lists.
Pixels: TypeAlias = torch.Tensor | dict


def stacked(made: list) -> Pixels:
    """Stack the outputs of a transform for several images: tensors are stacked, dicts are stacked entry by entry, and
    other values, such as the sides of a grid, stay in a list."""
    if isinstance(made[0], torch.Tensor):
        return torch.stack(made)
    if isinstance(made[0], dict):
        return {key: stacked([one[key] for one in made]) for key in made[0]}
    return made


def blank_pixels(transform, images: int) -> Pixels:
    """Zeros in the form of the transform's output for ``images`` images: its own ``blank(images)`` if it has one."""
    own = getattr(transform, "blank", None)
    return torch.zeros(images, 3, *transform.size) if own is None else own(images)


def move(pixels: Pixels, device: torch.device) -> Pixels:
    if isinstance(pixels, dict):
        return {key: move(value, device) for key, value in pixels.items()}
    return pixels.to(device) if isinstance(pixels, torch.Tensor) else pixels


def device_of(pixels: Pixels) -> torch.device:
    return flat_pixels(pixels)[0][0].device


def flat_pixels(pixels: Pixels) -> tuple[list[torch.Tensor], Callable]:
    """The tensors in pixels, and a function that puts other tensors in their places."""
    if isinstance(pixels, dict):
        parts = {key: flat_pixels(value) for key, value in pixels.items()}
        sizes = [len(tensors) for tensors, _ in parts.values()]
        ends = list(itertools.accumulate(sizes))

        def rebuilt(own) -> dict:
            places = zip(parts.items(), sizes, ends, strict=True)
            return {key: build(own[end - size : end]) for (key, (_, build)), size, end in places}

        return [tensor for tensors, _ in parts.values() for tensor in tensors], rebuilt
    if isinstance(pixels, torch.Tensor):
        return [pixels], lambda own: own[0]
    return [], lambda own: pixels
