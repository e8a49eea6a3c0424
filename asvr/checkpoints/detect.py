"""What a checkpoint is, told from its keys before anything is loaded."""

import re
from collections import Counter
from dataclasses import dataclass

from asvr.checkpoints import released
from asvr.checkpoints.dualtoken import BRANCHES
from asvr.checkpoints.reading import Checkpoint


@dataclass(frozen=True)
class Kind:
    """name: as in the tool's output. supported: whether `tools/convert.py import` reads it. marks: patterns, each of
    which some key must match. prefix: in front of a tokenizer's keys."""

    name: str
    what: str
    marks: tuple[str, ...]
    supported: bool = True
    prefix: str = ""


# In the order of trial: what holds another kind inside comes first.
KINDS = (
    Kind(
        "asvr",
        "a model of the released ASVR code",
        (r"model\.vision_tokenizer\..*rqtransformer_semantic\..*", r"projector\.0\.weight"),
    ),
    Kind(
        "dualtoken-d",
        "a DualToken tokenizer, generation D (April 2026)",
        (r"(rqvaesiglip\.)?prequant_sem\.attn\.qkv\.weight",),
        False,
    ),
    Kind(
        "dualtoken-c",
        "a DualToken tokenizer, generation C (March 2026)",
        (r"(rqvaesiglip\.)?quantizer_(sem|pixel|pix)\..*",),
        False,
    ),
    Kind(
        "dualtoken-a",
        "a DualToken tokenizer, generation A (projected to 256)",
        (r"prequant_semantic\.conv1\.weight", r"quantizer_semantic\.codebooks\.0\.weight"),
    ),
    Kind(
        "dualtoken-b",
        "a DualToken tokenizer, generation B (ASVR's)",
        (r"quantizer_semantic\.codebooks\.0\.weight", r"siglip_model\..*"),
    ),
    Kind(
        "dualtoken-a",
        "a DualToken tokenizer, generation A (projected to 256)",
        (r"rqvaesiglip\.prequant_semantic\.conv1\.weight", r"rqvaesiglip\.quantizer_semantic\..*"),
        prefix="rqvaesiglip.",
    ),
    Kind(
        "dualtoken-b",
        "a DualToken tokenizer, generation B (ASVR's)",
        (r"rqvaesiglip\.quantizer_semantic\.codebooks\.0\.weight",),
        prefix="rqvaesiglip.",
    ),
    Kind(
        "janus",
        "a Janus model or its VQGAN in transformers' layout: name its folder in PixelTokenizer(name=...)",
        (
            r"(model\.vqmodel\.)?quantize\.embedding\.weight",
            r"(model\.vqmodel\.)?encoder\.down\.0\.block\.0\..*",
            r"(model\.vqmodel\.)?decoder\.up\.0\.block\.0\..*",
        ),
        False,
    ),
    Kind("llava", "a LLaVA-1.5 model: projector and LLM", (r"model\.mm_projector\.0\.weight", r"lm_head\.weight")),
)


def detect(checkpoint: Checkpoint) -> Kind:
    """The kind of a checkpoint. Raises ``ValueError`` with its first keys where it is none that is known."""
    for kind in KINDS:
        if all(any(re.fullmatch(mark, key) for key in checkpoint.keys()) for mark in kind.marks):
            return kind
    first = ", ".join(sorted(checkpoint.keys())[:5])
    raise ValueError(
        f"{checkpoint.path}: its {len(checkpoint.shapes)} keys are of no kind that is known here (first: {first}). "
        f"Known: {', '.join(dict.fromkeys(kind.name for kind in KINDS))}"
    )


def describe(checkpoint: Checkpoint) -> str:
    """What `tools/convert.py show` prints: kind, where the weights stood, sizes, dtypes, which keys are for what."""
    kind = detect(checkpoint)
    groups = Counter(
        re.split(r"\.\d+\.", key)[0].rsplit(".weight", 1)[0].rsplit(".bias", 1)[0] for key in checkpoint.keys()
    )
    numbers = Counter()
    for key, shape in checkpoint.shapes.items():
        group = re.split(r"\.\d+\.", key)[0].rsplit(".weight", 1)[0].rsplit(".bias", 1)[0]
        count = 1
        for side in shape:
            count *= side
        numbers[group] += count
    lines = [
        f"{checkpoint.path}: {kind.what} ({kind.name})" + ("" if kind.supported else "; not imported by this tool"),
        f"keys: {len(checkpoint.shapes)}, numbers: {sum(numbers.values()):,}"
        + (f", under {checkpoint.wrapper!r}" if checkpoint.wrapper else ""),
        f"dtypes: {', '.join(sorted({str(checkpoint[key].dtype) for key in _samples(checkpoint)}))}",
        f"config.json: {'yes' if checkpoint.config is not None else 'no'}",
        *sizes(checkpoint, kind),
        "",
        f"{'keys':>6}  {'numbers':>15}  group",
        *(f"{groups[name]:>6}  {numbers[name]:>15,}  {name}" for name in sorted(groups)),
    ]
    return "\n".join(lines)


def _samples(checkpoint: Checkpoint) -> list[str]:
    """One key a shape: dtypes are the same within a kind of tensor."""
    return list({shape: key for key, shape in checkpoint.shapes.items()}.values())


def sizes(checkpoint: Checkpoint, kind: Kind) -> list[str]:
    """Sizes that its tensors tell."""
    lines = []
    prefix = released.RQVAE if kind.name == "asvr" else kind.prefix
    for branch, (_, quantizer, projection) in BRANCHES.items():
        keys = [
            k for k in checkpoint.keys() if re.fullmatch(re.escape(prefix + quantizer) + r"codebooks\.\d+\.weight", k)
        ]
        if keys:
            rows, width = checkpoint.shapes[keys[0]]
            projected = f"{prefix}{projection}conv1.weight" in checkpoint
            lines.append(
                f"{branch} codes: depth {len(keys)} (or 1 shared), {rows - 1} codes of width {width}"
                + (", behind a projection" if projected else "")
            )
    if "lm_head.weight" in checkpoint:
        vocabulary, width = checkpoint.shapes["lm_head.weight"]
        lines.append(f"LLM: vocabulary {vocabulary}, width {width}")
    return lines
