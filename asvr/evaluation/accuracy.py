"""Accuracy of a model on questions with known answers, and on the codes of the images.

Legend: ``I`` images, ``N`` visual tokens of an image, ``M`` cells of a tokenizer's own grid, ``D`` code depth.
"""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from asvr.base.distributed import is_main_process
from asvr.base.log import logger, progress_bar
from asvr.base.precision import computing_in
from asvr.base.shares import by_main, in_all, shared_out
from asvr.data.decoded import DecodedOnce
from asvr.data.image_sources import has_file
from asvr.data.images import open_image
from asvr.data.refusals import Refusal
from asvr.evaluation.generation import generate
from asvr.evaluation.live import LiveModel
from asvr.evaluation.metrics import DEFAULT, build_metrics, count_with, own_numbers, row_of
from asvr.evaluation.predictions import maps_of, of_images, right_codes
from asvr.models.compiling import uncompiled
from asvr.models.targets import CodeTarget
from asvr.recipe.build import build_collate


@uncompiled()
def evaluate(
    model,
    dataset,
    tokenizer,
    *,
    data,
    cache=None,
    samples_file: Path,
    precision: str | None,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    limit: int | None = None,
    num_examples: int = 6,
    metrics: Sequence[dict] = DEFAULT,
) -> dict:
    """Ask every question of ``dataset`` and compare the answers. The last answer of a record is the expected one.

    All processes call it, each with the whole model. Each asks its share of the batches. All get the same result, which
    is equal to that of a single process.

    samples_file: gets one JSON object per question: id, image (its name), kind, question, expected, answer, right.
    precision: see `computing_in`. limit: ask only so many questions. num_examples: how many images, evenly spaced, are
    kept with a map of their visual tokens that were predicted right. metrics: entries of a config, see
    `asvr.evaluation.metrics.Metric`.

    Returns the numbers of the metrics (by default accuracy in [0, 1], overall and by kind), and:

    - losses: nats per token, of answers and codes
    - ``<metric>_<target>``: other numbers of targets, see `Target.metrics`
    - codes: code accuracy on the images by target and depth, given the true codes of the depths before, as in training
    - codes_by_place: the same by target and place, a list for each row of the grid; only if all images have one grid
    - refused (a number of questions), seconds, examples
    """
    start = time.perf_counter()
    model.eval()
    number = min(len(dataset), limit or len(dataset))
    asked = _questions(model, dataset, number)
    if not asked:
        raise ValueError(f"evaluation: {dataset.source} has no question that can be asked")
    collate = DecodedOnce(build_collate(data, model, tokenizer, cache))
    rows, measured = _ask(model, dataset, tokenizer, asked, collate, batch_size, max_new_tokens, precision)
    lines = [rows[i] for i in sorted(rows)]
    by_main(lambda: _write(samples_file, lines))
    asked = [(i, item) for i, item in asked if i in rows]
    codes, places, examples = _codes(
        model, samples_file.parent, asked, rows, collate, batch_size, num_examples, precision
    )

    built = _metrics_that_asked(metrics, model, tokenizer, data, precision, samples_file.parent)

    def result() -> dict:
        return dict(
            count_with(built, lines),
            losses={name: value for name, value in measured.items() if name in model.weights()},
            **{name: value for name, value in measured.items() if name not in model.weights()},
            codes=codes,
            codes_by_place=places,
            refused=number - len(rows),
            seconds=round(time.perf_counter() - start, 1),
            examples=examples,
        )

    return by_main(result)


def _metrics_that_asked(metrics: Sequence[dict], model, tokenizer, data, precision: str | None, folder: Path) -> list:
    """The metrics. Those with a method ``ask`` have asked the model their own questions. folder: for their files."""
    built = build_metrics(metrics)
    live = LiveModel(
        model=model,
        text_tokenizer=tokenizer,
        template=data.template,
        image_aspect=data.image_aspect,
        precision=precision,
    )
    for _, metric in built:
        if hasattr(metric, "ask"):
            metric.ask(live, folder)
    return built


def _questions(model, dataset, number: int) -> list[tuple[int, dict]]:
    """Those of the first ``number`` questions that can be asked. All processes get the same ones in the same order."""
    asked: list[tuple[int, dict]] = []

    def prepare() -> list[int]:
        items = [(i, dataset.question(i)) for i in range(number)]
        asked.extend(_with_room(model, [(i, item) for i, item in items if not isinstance(item, Refusal)]))
        asked.sort(key=lambda pair: len(pair[1]["input_ids"]))  # rows of similar length need little padding
        return [i for i, _ in asked]

    first, *others = in_all(prepare)
    for rank, numbers in enumerate(others, 1):
        if numbers != first:
            raise ValueError(
                f"evaluation: process {rank} can ask {len(numbers)} questions of {dataset.source}, process 0 can ask "
                f"{len(first)}, and they are not the same: give all nodes the same files"
            )
    return asked


def _with_room(model, asked: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """The questions that leave a position of the LLM for an answer. Others count as refused."""
    positions = getattr(model.llm, "max_positions", None)
    if positions is None:
        return asked
    kept = [(i, item) for i, item in asked if _length(model.layout, item) < positions]
    if len(kept) < len(asked) and is_main_process():
        logger.warning(
            "%d of %d questions take all of the LLM's %d positions and are not asked",
            *(len(asked) - len(kept), len(asked), positions),
        )
    return kept


def _length(layout, item: dict) -> int:
    """The length of a question in tokens. Visual tokens count too."""
    images, sizes = len(item["images"]), item.get("image_sizes")
    found = [layout(size) for size in sizes] if sizes else [layout.fixed or layout.largest()] * images
    return len(item["input_ids"]) - images + sum(own.num_tokens for own in found)


def _ask(
    model, dataset, tokenizer, asked, collate, batch_size: int, max_new_tokens: int, precision: str | None
) -> tuple[dict[int, dict], dict[str, float]]:
    """The rows by the numbers of their questions, and the losses and targets' metrics of the records.

    Both are computed for one batch before the next, because only the images of one batch stay in memory.
    """

    def ask(chunk: list[tuple[int, dict]]) -> tuple[dict[int, dict], dict]:
        rows = _answers(model, dataset, tokenizer, chunk, collate, max_new_tokens, precision)
        return rows, _losses(model, [dataset[i] for i in rows], collate, precision)

    chunks = [asked[first : first + batch_size] for first in range(0, len(asked), batch_size)]
    with progress_bar(total=len(asked), desc="answers", unit="question") as bar:
        found = shared_out(chunks, ask, done=lambda together: bar.update(sum(map(len, together))))
    rows = {i: row for own, _ in found for i, row in own.items()}
    if not rows:
        raise ValueError(f"evaluation: no image of {dataset.source} can be read")
    return rows, _means([sums for _, sums in found])


def _write(file: Path, lines: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _answers(
    model, dataset, tokenizer, chunk: list[tuple[int, dict]], collate, max_new_tokens: int, precision: str | None
) -> dict[int, dict]:
    """The rows of a batch of questions by their numbers. Questions that the collate function refused (policy ``skip``)
    are left out."""
    batch = collate([dict(item, labels=[-100] * len(item["input_ids"])) for _, item in chunk])
    kept = set(batch.sample_ids)
    chunk = [(i, item) for i, item in chunk if item["sample_id"] in kept]
    if not chunk:
        return {}
    with computing_in(precision, model.device):
        answers = generate(
            model, batch.to(model.device), tokenizer, template=dataset.template, max_new_tokens=max_new_tokens
        )
    return {i: row_of(dataset, i, item, answer) for (i, item), answer in zip(chunk, answers, strict=True)}


@torch.inference_mode()
def _losses(model, items: list, collate, precision: str | None) -> dict[str, tuple[torch.Tensor, float]]:
    """The sums and counts of losses, as training counts them: nats and tokens of the answers and of the codes.

    Other numbers of targets are included, except right codes. `_codes` counts these by image.
    """
    if not items:
        return {}
    batch = collate(items)
    with computing_in(precision, model.device):
        out = model(batch.to(model.device))
    counts = model.count_targets([batch])
    codes = {f"correct_{target.name}" for target in model.targets if isinstance(target, CodeTarget)}
    counts |= {key: counts[name] for key, name in model.metrics.items() if key not in codes}
    return {name: (out[name].double().cpu(), n) for name, n in counts.items() if name in out}


def _means(found: list[dict[str, tuple[torch.Tensor, float]]]) -> dict[str, float | list[float]]:
    """The means over all batches."""
    sums, counts = defaultdict(float), defaultdict(float)
    for batch in found:
        for name, (total, number) in batch.items():
            sums[name] += total
            counts[name] += number
    return {name: (sums[name] / counts[name]).tolist() for name in sums}


@torch.inference_mode()
def _codes(
    model, folder: Path, asked, rows, collate, batch_size: int, num_examples: int, precision: str | None
) -> tuple[dict, dict, list[dict]]:
    """Code accuracy on the distinct images by depth and by place, and the examples.

    An example's image is saved in ``folder`` if it has no file of its own.
    """
    first_question = {}
    for i, item in sorted(asked, key=lambda pair: pair[0]):
        if len(item["image_keys"]) == 1:
            first_question.setdefault(item["image_keys"][0], (i, item))
    targets = [target for target in model.targets if isinstance(target, CodeTarget)]
    if not first_question or not targets:
        return {}, {}, []
    first_items = list(first_question.values())

    def measure(chunk: list[tuple[int, dict]]) -> dict[str, tuple[torch.Tensor, list[torch.Tensor]]]:
        batch = collate([dict(item, labels=[-100] * len(item["input_ids"])) for _, item in chunk]).to(model.device)
        with computing_in(precision, model.device):
            right_IND = {target.name: right_codes(model, target, batch).float() for target in targets}
        return {
            name: (of_images(v, batch.crops).cpu(), maps_of(v.mean(-1).cpu(), batch, model.encoder.grid))
            for name, v in right_IND.items()
        }

    found = shared_out([first_items[j : j + batch_size] for j in range(0, len(first_items), batch_size)], measure)
    right_ID = {name: torch.cat([chunk[name][0] for chunk in found]) for name in found[0]}
    maps = {name: [values for chunk in found for values in chunk[name][1]] for name in found[0]}
    by_depth = {name: values.mean(0).tolist() for name, values in right_ID.items()}
    whole = model.layout.first_is_whole  # else a map is of a part of the image
    spaced = range(0, len(first_items), max(1, len(first_items) // max(1, num_examples)))

    def example(j: int) -> dict:
        i, item = first_items[j]
        own = {name: values[j].tolist() for name, values in maps.items()} if whole else {}
        return dict(rows[i], image=_file_of(item["images"][0], folder / f"picture_{i}.png"), maps=own)

    return (
        by_depth,
        _by_place(maps) if whole else {},
        by_main(lambda: [example(j) for j in list(spaced)[:num_examples]]),
    )


def _by_place(maps: dict[str, list[torch.Tensor]]) -> dict[str, list]:
    """The mean of the maps, if all images have the same grid."""
    same = {name: torch.stack(own) for name, own in maps.items() if len({values.shape for values in own}) == 1}
    return {name: values.nanmean(0).tolist() for name, values in same.items()}


def _file_of(source, file: Path) -> str:
    """The image's own file. If it has none, the image is written to ``file``."""
    if not has_file(source):
        open_image(source).save(file)
        return str(file)
    return str(source)


def report(result: dict) -> str:
    """The result in one line."""
    parts = []
    if "by_kind" in result:
        kinds = ", ".join(f"{kind} {100 * r['accuracy']:.1f} %" for kind, r in result["by_kind"].items())
        parts.append(f"{100 * result['accuracy']:.2f} % of {result['total']} questions ({kinds})")
    parts += [f"{name} {_in_words(value)}" for name, value in own_numbers(result).items()]
    parts += [f"{name} loss {value:.4f}" for name, value in result["losses"].items()]
    text = ", ".join(parts)
    for name, values in result["codes"].items():
        text += f"; {name} codes {' / '.join(f'{100 * v:.1f}' for v in values)} % by depth"
    return text + (f"; {result['refused']} questions refused" if result["refused"] else "")


def _in_words(value: float | list[float]) -> str:
    return " / ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value]))
