"""FLOPs that one optimisation step needs for the samples that it has: no padding, causal attention counted as such.

What MFU and the floor of a step are made of. Each part comes from `asvr.profiling.flops`; what grows with the square
of a sample's length is told apart by counting two lengths.
"""

from mmengine.config import Config

from asvr.data.batch import Batch
from asvr.preflight import build_meta
from asvr.profiling.flops import Sample, flops_of, forward_parts, training_factor

SHORT, LONG = 256, 512


class StepFlops:
    """cached: whether codes come from a cache. Recomputation in the backward pass is not counted: it is not needed."""

    def __init__(self, stage: Config, *, cached: bool):
        model, self.sample, self.cached = build_meta(stage), Sample(), cached
        self.train = list(stage.train)
        llm = model.llm
        dtype = next(llm.parameters()).dtype
        short, long = (
            flops_of(lambda x: llm.hidden(x)[-1], [llm], (1, length, llm.hidden_size), dtype=dtype)
            for length in (SHORT, LONG)
        )
        self.per_pair = (long - LONG / SHORT * short) / (LONG**2 - LONG * SHORT)  # a T + b T^2
        self.per_token = short / SHORT - self.per_pair * SHORT
        self.parts = forward_parts(model, self.sample)

    def __call__(self, window: list[Batch]) -> int:
        return round(sum(self.by_part(window).values()))

    def by_part(self, window: list[Batch]) -> dict[str, float]:
        lengths = [length for batch in window for length in _lengths(batch)]
        images = sum(batch.num_images for batch in window)
        supervised = sum(batch.num_text_targets for batch in window)
        found = {}
        for part in self.parts:
            if part.blocks:  # causal: a token sees on average half of its sample
                flops = sum(self.per_token * length + self.per_pair * length**2 / 2 for length in lengths)
            elif part.name == "LM head":
                flops = part.flops * supervised / self.sample.text_tokens
            elif part.component.startswith("tokenizer.") and self.cached:
                flops = 0
            else:
                flops = part.flops * images
            found[part.name] = flops * training_factor(part, self.train, checkpointing=False, cached=False)
        return found


def _lengths(batch: Batch) -> list[int]:
    return batch.segments.lengths if batch.segments is not None else batch.attention_mask_BT.sum(1).tolist()
