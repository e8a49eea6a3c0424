"""Samples of a stage as training sees them: tokens, labels and images. ``asvr show`` prints them."""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from torch import nn

from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.images import image_size
from asvr.data.layouts import ImageLayout
from asvr.data.refusals import Refusal
from asvr.recipe.build import build_dataset, dataset_configs
from asvr.recipe.recipe import Stage
from asvr.registry import TEXT_TOKENIZERS

WIDTH = 110
INDENT = " " * 12


def samples_text(stage: Stage, model: nn.Module, count: int) -> str:
    """The first ``count`` records of a stage's training data. model: the stage's; it decides the tokens of an image.

    Raises ``ValueError`` if the text tokenizer or the data are missing, as a run would.
    """
    tokenizer = TEXT_TOKENIZERS.build(stage.text_tokenizer)
    config = dict(dataset_configs(stage)["data.train"], on_error="skip")
    dataset = build_dataset(config, stage.data, tokenizer, model.layout.per_image)
    head = f"Training samples of stage {stage.name}: the first {min(count, len(dataset))} of {len(dataset):,} records"
    return "\n\n".join([head, *(_sample(dataset[i], tokenizer, model) for i in range(min(count, len(dataset))))])


def _sample(item: dict | Refusal, tokenizer, model: nn.Module) -> str:
    if isinstance(item, Refusal):
        return f"refused: {item.message}"
    spans = list(_spans(item, model.layout))
    learned = sum(end - begin for begin, end, what, _ in spans if what == "learned")
    cut = f", cut to data.max_length={item['cut_to']}" if item.get("cut_to") else ""
    lines = [f"{item['sample_id']}: {spans[-1][1]} positions, {learned} text tokens learned{cut}"]
    for begin, end, what, content in spans:
        place = f"{begin}-{end - 1}" if end - begin > 1 else str(begin)
        if what == "image":
            lines.append(f"  {place:<10}{content}: {_targets(model)}")
            continue
        text = repr(tokenizer.hf.decode(content, skip_special_tokens=False))
        lines += [f"  {place:<10}{what}: {text}", *_tokens(content, tokenizer)]
    return "\n".join(lines)


def _spans(item: dict, layout: ImageLayout) -> Iterator[tuple[int, int, str, object]]:
    """Spans of positions: begin, end, kind (``learned``, ``not learned`` or ``image``), and the token ids or a
    description of the image."""
    begin, images = 0, iter(item["images"])
    pairs = zip(item["input_ids"], item["labels"], strict=True)
    for (is_image, learned), group in groupby(pairs, lambda pair: (pair[0] == IMAGE_TOKEN, pair[1] != IGNORE)):
        ids = [token for token, _ in group]
        if not is_image:
            yield begin, begin + len(ids), "learned" if learned else "not learned", ids
            begin += len(ids)
            continue
        for _ in ids:
            size = image_size(next(images))
            own = layout.fixed or layout(size)
            crops = f" in {own.num_crops} crops" if own.num_crops > 1 else ""
            what = f"image of {size[0]} x {size[1]} pixels{crops}, {own.num_tokens} visual tokens"
            yield begin, begin + own.num_tokens, "image", what
            begin += own.num_tokens


def _targets(model: nn.Module) -> str:
    names = ", ".join(f"{target.name} (shift {target.shift})" for target in model.targets)
    return f"reconstructed by {names}" if names else "not reconstructed"


def _tokens(ids: list[int], tokenizer) -> list[str]:
    """Each token, in the form of the tokenizer's vocabulary, with its id."""
    words = [f"{token}={i}" for i, token in zip(ids, tokenizer.hf.convert_ids_to_tokens(ids), strict=True)]
    text = " ".join(words)
    return textwrap.wrap(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False)
