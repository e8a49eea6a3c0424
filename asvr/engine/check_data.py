"""Runs ``asvr check-data``: reads the data of a config, or one file, and reports everything that is wrong with them."""

import json
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from asvr.base.plots import optional, plain
from asvr.base.text import printable
from asvr.data.check import EXAMPLES, Found, Source, scan
from asvr.data.images import MAX_PIXELS
from asvr.data.layouts import ImageLayout
from asvr.recipe.build import build_dataset, dataset_configs, shifts_of
from asvr.recipe.config import load_config
from asvr.recipe.preflight import check_sizes
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config
from asvr.registry import TEXT_TOKENIZERS

REFUSED = 3  # the exit code if a record is refused; 1 and 2 are errors of the config and the command


def sources_of_config(path: str, stage: str | None, cfg_options: dict | None) -> list[Source]:
    """List every data set of a config, or of one stage. A data set that is used in several ways is listed for each.

    It needs the text tokenizer but no weights: the model is built without memory. Raises ``ValueError`` with all
    problems of the config, and for a data file that cannot be read at all."""
    cfg = load_config(path, cfg_options)
    check_config(cfg)
    recipe = Recipe(cfg)
    if stage is not None:
        if stage not in recipe.stages:
            raise ValueError(f"--stage {stage}: expected one of {', '.join(recipe.stages)}")
        recipe = recipe.only(stage)
    models = check_sizes(recipe)
    tokenizer = TEXT_TOKENIZERS.build(recipe.text_tokenizer)
    uses: dict[str, tuple[list[str], Config, dict]] = {}
    for name, data in recipe.stages.items():
        for key, config in dataset_configs(data).items():
            used = [config, data.data.template, data.data.max_length, repr(models[name].layout), key]
            used += [getattr(data.data, "max_pixels", None), shifts_of(models[name])]
            names, *_ = uses.setdefault(json.dumps(used, default=str, sort_keys=True), ([], data.data, config))
            names.append(f"{name}: {key}")
    found = []
    for names, data, config in uses.values():
        model, asked = models[names[0].partition(":")[0]], not names[0].endswith("data.train")
        source = _source(", ".join(names), config, data, tokenizer, model.layout.per_image, asked)
        found.append(replace(source, shifts=shifts_of(model)))
    return found


def sources_of_file(
    ann_file: str, *, image_folder: str, template: str, tokenizer: str, max_length: int | None, num_image_tokens: int
) -> list[Source]:
    """A source for one LLaVA file without a config, read as training rows. Raises the errors of `sources_of_config`."""
    data = Config(dict(template=template, max_length=max_length, on_error="skip"))
    config = dict(type="LlavaDataset", ann_file=ann_file, image_folder=image_folder)
    text_tokenizer = TEXT_TOKENIZERS.build(dict(type="HFTokenizer", name=tokenizer))
    return [_source(ann_file, config, data, text_tokenizer, num_image_tokens, False)]


def _source(
    name: str, config: dict, data: Config, tokenizer, num_image_tokens: int | ImageLayout, asked: bool
) -> Source:
    uncut = Config(dict(template=data.template, max_length=None, on_error="skip"))
    try:
        dataset = build_dataset(dict(config, on_error="skip"), uncut, tokenizer, num_image_tokens)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Source(
        name=name,
        dataset=dataset,
        max_length=data.max_length,
        num_image_tokens=num_image_tokens,
        max_pixels=getattr(data, "max_pixels", None) or MAX_PIXELS,
        asked=asked,
    )


def check_sources(sources: list[Source], *, out: Path, workers: int, limit: int | None, decode: bool) -> bool:
    """Scan the sources, print what was found, and write it to ``out``. Returns whether every record can be used.

    The files are report.json (counts), records.jsonl (one line for each record that is refused or unusual) and
    sizes.png."""
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    with open(out / "records.jsonl", "w", encoding="utf-8") as stream:
        for source in sources:
            found, examples = scan(source, report=stream, workers=workers, limit=limit, decode=decode)
            results[source.name] = found
            print(_in_words(source.name, found, examples))
    report = {name: {key: v for key, v in vars(found).items() if key != "bad"} for name, found in results.items()}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    with optional(out / "sizes.png"):
        draw_sizes(out / "sizes.png", sources, results)
    print(f"written to {out}: report.json, records.jsonl, sizes.png")
    return not any(found.refused for found in results.values())


def _in_words(name: str, found: Found, examples: dict) -> str:
    refused = sum(found.refused.values())
    lines = [f"{name}: {found.records:,} records, {found.pictures:,} images, {refused:,} refused"]
    if found.unread:
        keys = ", ".join(f"{key} ({number:,})" for key, number in found.unread.most_common())
        lines.append(f"  keys that are not read (number of records): {printable(keys)}")
    for kind, counts in (("refused", found.refused), ("noted", found.noted)):
        for reason, number in counts.most_common():
            lines.append(f"  {kind}: {reason}: {number:,}")
            lines += [f"    {message}" for message in examples[kind, reason]]
            if number > EXAMPLES:
                lines.append(f"    and {number - EXAMPLES:,} more in records.jsonl")
    return "\n".join(lines)


def draw_sizes(file: Path, sources: list[Source], results: dict[str, Found]) -> None:
    """Draw histograms of row lengths and image sizes, one row of plots for each source."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6 * len(sources)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, source in zip(figure.subplots(len(sources), 2, squeeze=False), sources, strict=True):
        found = results[source.name]
        _histogram(axes[0], found.tokens, f"{plain(source.name)}\nrows by length in tokens, visual tokens included")
        _histogram(axes[1], found.sides, "images by their longer side in pixels")
        if source.max_length is not None:
            axes[0].axvline(source.max_length, color="#d62728", linewidth=1, label="max_length")
            axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=100)


def _histogram(axis, counts: dict[int, int], title: str) -> None:
    axis.set_title(title, fontsize=8)
    if not counts:
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center")
        axis.set(xticks=[], yticks=[])
        return
    bins = sorted(counts)
    widths = [1 << max(0, begin.bit_length() - 4) for begin in bins]
    axis.bar(bins, [counts[begin] for begin in bins], widths, align="edge", color="#1f77b4")
    axis.set_xscale("log", base=2)
    axis.set_xlim(bins[0] / 2, 2 * bins[-1])
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.tick_params(labelsize=7)
