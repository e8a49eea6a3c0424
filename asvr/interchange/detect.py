"""Detect the kind of a checkpoint from its keys, before any weights are loaded."""

import math
import re
from dataclasses import dataclass

import torch

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange import dualtoken, llava, released, vqgan
from asvr.interchange.rules import sort_keys
from asvr.recipe.config import MODEL_FILE


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    name: as in the tool's output. supported: whether `asvr convert import` reads it. marks: patterns; each must match
    some key, and the first group, if there is one, is the prefix of the keys. instead: what reads an unsupported kind.
    """

    name: str
    what: str
    marks: tuple[str, ...]
    supported: bool = True
    instead: str = ""

    @property
    def title(self) -> str:
        """The kind in words. For an unsupported kind it says what reads it."""
        refusal = "" if self.supported else f" is not imported by this tool{': ' * bool(self.instead)}{self.instead}"
        return f"{self.what} ({self.name}){refusal}"

    def prefix(self, checkpoint: Checkpoint) -> str:
        """The prefix of the keys."""
        match = next(m for key in checkpoint.keys() if (m := re.fullmatch(self.marks[0], key)))
        return (match[1] or "") if match.re.groups else ""


# They are tried in this order. A kind that contains another one comes first.
KINDS = (
    Kind(
        "asvr",
        "a model of the released ASVR code",
        (r"model\.vision_tokenizer\..*rqtransformer_semantic\..*", r"projector\.0\.weight"),
    ),
    Kind(
        "dualtoken-d",
        "a DualToken tokenizer, generation D (April 2026)",
        (r"(rqvaesiglip\.)?prequant_sem\..*",),
    ),
    Kind(
        "dualtoken-c",
        "a DualToken tokenizer, generation C (March 2026)",
        (r"(rqvaesiglip\.)?quantizer_(sem|pixel|pix)\..*",),
        supported=False,
    ),
    Kind(
        "dualtoken-a",
        "a DualToken tokenizer, generation A (projected to 256)",
        (r"(rqvaesiglip\.)?prequant_semantic\..*", r"(rqvaesiglip\.)?quantizer_semantic\.codebooks\..*"),
    ),
    Kind(
        "dualtoken-b",
        "a DualToken tokenizer, generation B (ASVR's)",
        (r"(rqvaesiglip\.)?quantizer_semantic\.codebooks\..*", r"(rqvaesiglip\.)?siglip_model\..*"),
    ),
    Kind(
        "vilau",
        "a VILA-U tokenizer",
        (r"(rqvaesiglip\.)?quantizer\.codebooks\..*", r"(rqvaesiglip\.)?siglip_model\..*"),
        supported=False,
    ),
    Kind(
        "rqvae",
        "an RQ-VAE (kakaobrain/rq-vae-transformer)",
        (r"quantizer\.codebooks\.0\.weight", r"encoder\.down\.0\.block\.0\..*"),
    ),
    Kind(
        "llamagen",
        "a LlamaGen VQGAN (VQ-8, VQ-16), or a Janus model in its own layout",
        (r"(gen_vision_model\.)?quantize\.embedding\.weight", r"(gen_vision_model\.)?encoder\.conv_blocks\.0\.res\..*"),
    ),
    Kind(
        "janus",
        "a Janus model or its VQGAN in transformers' layout",
        (
            r"(model\.vqmodel\.)?quantize\.embedding\.weight",
            r"(model\.vqmodel\.)?encoder\.down\.0\.block\.0\..*",
            r"(model\.vqmodel\.)?decoder\.up\.0\.upsample\..*",
        ),
    ),
    Kind(
        "taming-remapped",
        "a taming-transformers VQGAN whose codes are renumbered",
        (r"quantize\.used", r"encoder\.down\.0\.block\.0\..*"),
        supported=False,
    ),
    Kind(
        "taming",
        "a taming-transformers VQGAN",
        (r"quantize\.embedding\.weight", r"encoder\.down\.0\.block\.0\..*"),
    ),
    Kind(
        "taming-gumbel",
        "a taming-transformers VQGAN with Gumbel quantisation",
        (r"quantize\.proj\.weight", r"quantize\.embed\.weight"),
        supported=False,
    ),
    Kind(
        "llava-hf",
        "a LLaVA model in transformers' layout",
        (r"(?:model\.)?multi_modal_projector\.linear_1\.weight",),
        supported=False,
        instead="transformers' LlavaForConditionalGeneration or LlavaNextForConditionalGeneration reads it",
    ),
    Kind("llava", "a LLaVA-1.5 model: projector and LLM", (r"model\.mm_projector\.0\.weight", r"lm_head\.weight")),
)


OWN = Kind("own", "a model of this library", (), supported=False, instead="asvr.load reads it as it is")


def detect(checkpoint: Checkpoint) -> Kind:
    """The kind of a checkpoint. Raises ``ValueError`` with its first keys if the kind is unknown."""
    if (checkpoint.path / MODEL_FILE).is_file():
        return OWN
    for kind in KINDS:
        if all(any(re.fullmatch(mark, key) for key in checkpoint.keys()) for mark in kind.marks):
            return kind
    first = ", ".join(sorted(checkpoint.keys())[:5])
    raise ValueError(
        f"{checkpoint.path}: its {len(checkpoint.shapes)} keys are of no kind that is known here (first: {first}). "
        f"Known: {', '.join(dict.fromkeys(kind.name for kind in KINDS))}"
    )


def rules_of(checkpoint: Checkpoint, kind: Kind) -> list:
    """The rules that the import uses for the keys. No weights are read.

    Raises ``ValueError`` if the file alone does not show its sizes.
    """
    if kind.name == "llava":
        return llava.RULES
    assert kind.supported, kind
    prefix = kind.prefix(checkpoint)
    with torch.device("meta"):
        if kind.name == "asvr":
            return released.plan(checkpoint, num_heads=1)[-1]  # the number of heads changes no key
        if kind.name.startswith("dualtoken"):
            generation = "d" if kind.name == "dualtoken-d" else "ab"
            return dualtoken.plan(checkpoint, "semantic", generation=generation, prefix=prefix, num_heads=1)[-1]
        return vqgan.plan(checkpoint, kind.name, prefix=prefix)[-1]


def describe(checkpoint: Checkpoint) -> str:
    """The text of `asvr convert show`: kind, place of the weights in the file, sizes, dtypes, and use of each key."""
    kind = detect(checkpoint)
    total = sum(_count(checkpoint, key) for key in checkpoint.keys())
    unknown = ""
    if kind.supported:
        try:
            uses = _uses(checkpoint, rules_of(checkpoint, kind))
        except ValueError as error:  # not raised, because the rest can still be shown
            unknown = f"the use of its keys is not known: {error}"
    if not kind.supported or unknown:
        uses = dict.fromkeys(checkpoint.keys(), "?" if unknown else "-")
    groups = {}
    for key, use in uses.items():
        keys, numbers = groups.get((_group(key), use), (0, 0))
        groups[_group(key), use] = (keys + 1, numbers + _count(checkpoint, key))
    lines = [
        f"{checkpoint.path}: {kind.title}",
        f"keys: {len(checkpoint.shapes)}, numbers: {total:,}"
        + (f", under {checkpoint.wrapper!r}" if checkpoint.wrapper else ""),
        f"dtypes: {', '.join(sorted(checkpoint.dtypes))}",
        *([f"not tensors, left out: {', '.join(checkpoint.left_out)}"] if checkpoint.left_out else []),
        f"config.json: {'yes' if checkpoint.config is not None else 'no'}",
        *sizes(checkpoint),
        *([unknown] if unknown else []),
        "",
        f"{'keys':>6}  {'numbers':>15}  {'group':<56}  use"
        + (" (import of the semantic branch)" if kind.name.startswith("dualtoken") else ""),
        *(f"{keys:>6}  {n:>15,}  {group:<56}  {use}" for (group, use), (keys, n) in sorted(groups.items())),
    ]
    return "\n".join(lines)


def _uses(checkpoint: Checkpoint, rules: list) -> dict[str, str]:
    used, ignored, unknown = sort_keys(checkpoint.keys(), rules)
    return (
        {key: f"-> {_group(ours)}" for ours, (key, _) in used.items()}
        | {key: f"ignored: {why}" for key, why in ignored.items()}
        | dict.fromkeys(unknown, "unknown: the import would refuse it")
    )


def _group(key: str) -> str:
    """A key up to its first number, without ``weight`` and ``bias``."""
    return re.sub(r"\.(weight|bias)$", "", re.split(r"\.\d+\.", key)[0])


def _count(checkpoint: Checkpoint, key: str) -> int:
    return math.prod(checkpoint.shapes[key])


def sizes(checkpoint: Checkpoint) -> list[str]:
    """Sizes of codebooks and of the LLM."""
    books = {}
    for key, shape in checkpoint.shapes.items():
        if len(shape) != 2:
            continue
        if m := re.fullmatch(r"(?:.*\.)?(quantizer\w*)\.codebooks\.\d+\.weight", key):
            padding = 0 if key.startswith("tokenizers.") else 1  # the last row of DualToken's codebooks is no code
            books.setdefault((m[1], shape[0] - padding, shape[1]), []).append(key)
        elif re.fullmatch(r"(.*\.)?quantize\.embedding\.weight", key):
            books.setdefault(("quantize", *shape), []).append(key)
    lines = [
        f"{name}: {len(keys)} codebook(s) of {count} codes of width {width}"
        for (name, count, width), keys in sorted(books.items())
    ]
    if "lm_head.weight" in checkpoint:
        vocabulary, width = checkpoint.shape("lm_head.weight", 2)
        lines.append(f"LLM: vocabulary {vocabulary}, width {width}")
    return lines
