"""FLOPs that one optimisation step needs for its samples, without padding, with causal attention.

MFU and the floor of a step's time are computed from them. Each part comes from `asvr.flops.count`. Two lengths are
counted, to find the part that grows with the square of a sample's length.
"""

import logging

import torch
from torch import nn

from asvr.data.batch import Batch
from asvr.data.layouts import layout_config
from asvr.flops.count import (
    LLM_BLOCKS,
    Part,
    Sample,
    counted_positions,
    flops_of,
    forward_parts,
    text_parts,
    training_factor,
)
from asvr.flops.memory import in_one_line, leaves_images_out
from asvr.models.trainable import trained_shares
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage

logger = logging.getLogger("asvr")
SHORT, LONG = 256, 512
# Dense half-precision FLOP/s of cards by a part of their names, the first that fits (NVIDIA's data sheets of H200,
# H100, A100 and L40S; the architecture paper of Ada for the RTX 4090, with float32 accumulation).
PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


class StepFlops:
    """Counts the FLOPs of the steps of a stage. Features and codes from a cache cost nothing. Recomputation in the
    backward pass is not counted, because the result does not need it."""

    def __init__(self, stage: Stage):
        model, self.sample = build_meta(stage), Sample()
        self.half = stage.optim.precision == "bf16"
        self.train = trained_shares(model)
        llm = model.llm
        dtype = next(llm.parameters()).dtype
        short, long = (
            flops_of(lambda x: llm.hidden(x)[-1], [llm], (1, length, llm.hidden_size), dtype=dtype)
            for length in (SHORT, LONG)
        )
        self.per_pair = (long - LONG / SHORT * short) / (LONG**2 - LONG * SHORT)  # a T + b T^2
        self.per_token = short / SHORT - self.per_pair * SHORT
        self.parts = forward_parts(model, self.sample)
        self.image = model.layout.largest()
        self.crops = self.image.num_crops  # that parts of images are counted for
        self.targets = {target.name: (target, counted_positions(target, model)) for target in model.targets}

    def __call__(self, window: list[Batch]) -> int:
        return round(sum(self.by_part(window).values()))

    def peak(self, device: torch.device) -> float | None:
        """The peak FLOP/s of the device in bf16, with `Float8` too. None if it is not known, or in float32."""
        if device.type != "cuda" or not self.half:
            return None
        return peak_flops(torch.cuda.get_device_name(device))

    def cost(self, *, encodes: bool) -> dict[str, float]:
        """FLOPs of a token, of a pair of tokens and of a crop in a training step, for `asvr.data.packing.Balance`.

        encodes: whether the encoder runs in the step. The LM head is left out, and codes count as cached."""
        found = dict(token=0.0, pair=0.0, crop=0.0)
        for part in self.parts:
            factor = training_factor(part, self.train, recomputed=set(), cached=False)
            if part.name == LLM_BLOCKS or part.rows:
                found["token"] += self.per_token * factor
                found["pair"] += self.per_pair / 2 * factor
            elif part.name != "LM head" and not part.component.startswith("tokenizer."):
                found["crop"] += part.flops / self.crops * (factor if encodes or part.component != "encoder" else 0)
        return found

    def by_part(self, window: list[Batch]) -> dict[str, float]:
        lengths = [length for batch in window for length in _lengths(batch)]
        seeing = [length for batch in window if batch.num_images for length in _lengths(batch)]
        images = sum(batch.num_images for batch in window) / self.crops
        encoded = sum(batch.num_images for batch in window if batch.features_INE is None) / self.crops
        supervised = sum(batch.num_text_targets for batch in window)
        found = {}
        for part in self.parts:
            if part.name == LLM_BLOCKS or part.rows:  # causal: a token sees on average half of its sample
                own = seeing if part.rows else lengths
                flops = sum(self.per_token * length + self.per_pair * length**2 / 2 for length in own)
            elif part.name == "LM head":
                flops = part.flops * supervised / self.sample.text_tokens
            elif part.component == "encoder":
                flops = part.flops * encoded
            elif part.component.startswith("tokenizer."):
                name = part.component.removeprefix("tokenizer.")
                computed = sum(batch.num_images for batch in window if name not in batch.truth)
                flops = part.flops * computed / self.crops
            elif part.target:
                target, counted = self.targets[part.target]
                flops = part.flops * target.count(window, training=True) / counted if counted else part.flops * images
            else:
                flops = part.flops * images
            found[part.name] = flops * training_factor(part, self.train, recomputed=set(), cached=False)
        return found


def parts_by_stage(recipe: Recipe, models: dict[str, nn.Module], sample: Sample) -> dict[str, list[Part]]:
    """The parts of the forward pass by stage. A stage is counted again if its transforms, targets or image layout
    differ from those of the stages before. If its data set leaves images out, only the sample's text is counted."""
    found: dict[str, list[Part]] = {}
    for name, model in models.items():
        own = _counted_by(recipe.stages[name])
        known = next((parts for n, parts in found.items() if _counted_by(recipe.stages[n]) == own), None)
        count = text_parts if leaves_images_out(recipe.stages[name].data) else forward_parts
        found[name] = known or count(model, sample)
    return found


def _counted_by(stage: Stage) -> tuple:
    """The settings of a stage that change FLOPs."""
    return (
        leaves_images_out(stage.data),
        stage.model_transforms,
        layout_config(stage.model),
        stage.model.get("reconstruction"),
    )


def step_flops(stage: Stage) -> StepFlops | None:
    """The counter for the log of a run. If the model cannot be traced, a warning says why, and the run goes on."""
    try:
        return StepFlops(stage)
    except Exception as error:  # tracing runs a user's own component, which may raise anything
        logger.warning("FLOPs are not logged: %s", in_one_line(error))
        return None


def _lengths(batch: Batch) -> list[int]:
    return batch.segments.lengths if batch.segments is not None else batch.attention_mask_BT.sum(1).tolist()


def peak_flops(device_name: str) -> float | None:
    """Dense half-precision FLOP/s of a device from its data sheet. None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)
