"""Accuracy on questions with known answers, and on the codes of the pictures.

Legend: ``I`` images, ``N`` visual tokens of an image, ``M`` cells of a tokenizer's own grid, ``D`` code depth.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from asvr.base.log import logger, progress_bar
from asvr.base.precision import computing_in
from asvr.data.batch import Batch
from asvr.data.image_sources import has_file
from asvr.data.images import open_image
from asvr.data.refusals import Refusal
from asvr.evaluation.generation import generate
from asvr.models.compiling import uncompiled
from asvr.models.targets import CodeTarget, Seen
from asvr.recipe.build import build_collate

NO_KIND = "all"


def normalise(answer: str) -> str:
    """Case, outer blanks and a closing full stop do not count."""
    return answer.strip().rstrip(".").strip().lower()


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
) -> dict:
    """Ask every question of ``dataset`` (its last answer is the expected one) and compare.

    samples_file: gets one JSON object a question: id, image (its name), kind, question, expected, answer,
        right.
    precision: see `computing_in`. limit: only the first questions. num_examples: how many pictures, evenly spaced, are
    kept with a map of which of their visual tokens were predicted right.
    Returns accuracy in [0, 1], in all and by kind; losses in nats a token, of answers and codes; code accuracy on the
    pictures, given the true codes of the depths before (as in training), by target and depth, and by target and place
    (a row of the picture's grid a list); questions refused; seconds; the examples.
    """
    start = time.perf_counter()
    model.eval()
    items = [dataset.question(i) for i in range(min(len(dataset), limit or len(dataset)))]
    asked = [(i, item) for i, item in enumerate(items) if not isinstance(item, Refusal)]
    asked = _with_room(model, asked)
    if not asked:
        raise ValueError(f"evaluation: {dataset.source} has no question that can be asked")
    asked.sort(key=lambda pair: len(pair[1]["input_ids"]))  # rows of like length waste little on padding
    collate = build_collate(data, model, tokenizer, cache)
    rows, device = {}, model.device
    with progress_bar(total=len(asked), desc="answers", unit="question") as bar:
        for first in range(0, len(asked), batch_size):
            chunk = asked[first : first + batch_size]
            batch = collate([dict(item, labels=[-100] * len(item["input_ids"])) for _, item in chunk])
            chunk = _kept(chunk, batch)
            if not chunk:
                continue
            with computing_in(precision, device):
                answers = generate(
                    model, batch.to(device), tokenizer, template=dataset.template, max_new_tokens=max_new_tokens
                )
            for (i, item), answer in zip(chunk, answers, strict=True):
                rows[i] = _row(dataset, i, item, answer)
            bar.update(len(chunk))
    if not rows:
        raise ValueError(f"evaluation: no picture of {dataset.source} can be read")
    asked = [(i, item) for i, item in asked if i in rows]
    samples_file.parent.mkdir(parents=True, exist_ok=True)
    samples_file.write_text("".join(json.dumps(rows[i]) + "\n" for i in sorted(rows)), encoding="utf-8")
    codes, places, examples = _codes(
        model, samples_file.parent, asked, rows, collate, batch_size, num_examples, precision
    )
    return dict(
        _summary(rows.values()),
        losses=_losses(model, dataset, [i for i, _ in asked], collate, batch_size, precision),
        codes=codes,
        codes_by_place=places,
        refused=len(items) - len(asked),
        seconds=round(time.perf_counter() - start, 1),
        examples=examples,
    )


def _with_room(model, asked: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """The questions that leave a position of the LLM for an answer; others count as refused."""
    positions, visual = getattr(model.llm, "max_positions", None), model.encoder.num_tokens - 1
    if positions is None:
        return asked
    kept = [(i, item) for i, item in asked if len(item["input_ids"]) + len(item["images"]) * visual < positions]
    if len(kept) < len(asked):
        logger.warning(
            "%d of %d questions take all of the LLM's %d positions and are not asked",
            *(len(asked) - len(kept), len(asked), positions),
        )
    return kept


def _kept(chunk: list[tuple[int, dict]], batch: Batch) -> list[tuple[int, dict]]:
    """The questions that the collate function did not refuse (policy ``skip``), in the order of the batch's rows."""
    kept = set(batch.sample_ids)
    return [(i, item) for i, item in chunk if item["sample_id"] in kept]


def _row(dataset, i: int, item: dict, answer: str) -> dict:
    if item["answer"] is None:
        raise ValueError(
            f"{item['sample_id']}: this question has no answer to compare with; it must end with a 'gpt' turn"
        )
    record = dataset.record(i)
    return dict(
        id=item["sample_id"],
        record_id=record.get("id"),
        image=record.get("image"),
        kind=record.get("category", NO_KIND),
        question=item["question"],
        expected=item["answer"],
        answer=answer,
        right=normalise(answer) == normalise(item["answer"]),
    )


def _summary(rows) -> dict:
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row["right"])
    everything = [right for rights in by_kind.values() for right in rights]
    return dict(
        accuracy=sum(everything) / len(everything),
        right=sum(everything),
        total=len(everything),
        by_kind={kind: dict(accuracy=sum(r) / len(r), total=len(r)) for kind, r in sorted(by_kind.items())},
    )


@torch.inference_mode()
def _losses(model, dataset, numbers: list[int], collate, batch_size: int, precision: str | None) -> dict[str, float]:
    """Nats a token, of the records' answers and of the codes of their pictures, as training counts them."""
    sums, counts = defaultdict(float), defaultdict(float)
    for first in range(0, len(numbers), batch_size):
        batch = collate([dataset[i] for i in numbers[first : first + batch_size]])
        with computing_in(precision, model.device):
            out = model(batch.to(model.device))
        for name, count in model.count_targets([batch]).items():
            if name in out:
                sums[name] += out[name].item()
                counts[name] += count
    return {name: sums[name] / counts[name] for name in sums}


@torch.inference_mode()
def _codes(
    model, folder: Path, asked, rows, collate, batch_size: int, num_examples: int, precision: str | None
) -> tuple[dict, dict, list[dict]]:
    """Code accuracy on each distinct picture by depth and by place, and the examples, whose pictures stand in
    ``folder`` if nowhere else."""
    first_question = {}
    for i, item in sorted(asked):
        if len(item["image_keys"]) == 1:
            first_question.setdefault(item["image_keys"][0], (i, item))
    targets = [target for target in model.targets if isinstance(target, CodeTarget)]
    if not first_question or not targets:
        return {}, {}, []
    pictures = list(first_question.values())
    spaced = range(0, len(pictures), max(1, len(pictures) // max(1, num_examples)))
    chosen = {pictures[j][0] for j in list(spaced)[:num_examples]}
    right, maps, examples = defaultdict(list), defaultdict(list), []
    for first in range(0, len(pictures), batch_size):
        chunk = pictures[first : first + batch_size]
        batch = collate([dict(item, labels=[-100] * len(item["input_ids"])) for _, item in chunk]).to(model.device)
        with computing_in(precision, model.device):
            right_IND = {target.name: right_codes(model, target, batch) for target in targets}
        for name, value in right_IND.items():
            right[name].append(value.float().nanmean(1).cpu())
            maps[name].append(value.float().mean(-1).cpu())
        for row, (i, item) in enumerate(chunk):
            if i in chosen:
                shares = {
                    name: value[row].mean(-1).view(*model.encoder.grid).tolist() for name, value in right_IND.items()
                }
                examples.append(
                    dict(rows[i], image=_file_of(item["images"][0], folder / f"picture_{i}.png"), maps=shares)
                )
    by_depth = {name: torch.cat(values).mean(0).tolist() for name, values in right.items()}
    places = {name: torch.cat(values).nanmean(0).view(*model.encoder.grid).tolist() for name, values in maps.items()}
    return by_depth, places, examples


def _file_of(source, file: Path) -> str:
    """The picture's own file, or ``file``, where it is written if it has none."""
    if not has_file(source):
        open_image(source).save(file)
        return str(file)
    return str(source)


@dataclass(frozen=True)
class PredictedCodes:
    """What a head predicts for each visual token, given the true codes of the depths before (as in training).

    predicted_IND: the true code at a token that no hidden state predicts; probability_IND: NaN there.
    own_IMD: the true codes on the tokenizer's own grid.
    """

    predicted_IND: torch.Tensor
    probability_IND: torch.Tensor
    true_IND: torch.Tensor
    own_IMD: torch.Tensor

    @property
    def right_IND(self) -> torch.Tensor:
        """1 where a code was predicted right, else 0; NaN at a token that no hidden state predicts."""
        right_IND = (self.predicted_IND == self.true_IND).float()
        return right_IND.masked_fill(self.probability_IND.isnan(), float("nan"))


def predicted_codes(model, target, batch: Batch) -> PredictedCodes:
    embeds_BTH, features_INE = model.embed(batch)
    hidden = model.llm.hidden(embeds_BTH, {target.tap})[target.tap].flatten(0, 1)
    truth = model.truth(target, batch, features_INE)
    own_IMD, true_IND = truth["codes"].long(), target.codes(truth)
    source_P, token_P = target.positions.places(batch, target.shift, training=False)
    codes_PD = true_IND.flatten(0, 1)
    own_P = torch.arange(len(codes_PD), device=codes_PD.device) if token_P is None else token_P
    predicted = codes_PD.clone()
    probability = torch.full(codes_PD.shape, float("nan"), device=codes_PD.device)
    some = {} if token_P is None else dict(token_P=token_P)
    predicted[own_P], probability[own_P] = target.predict(hidden[source_P], codes_PD[own_P], **some)
    return PredictedCodes(predicted.view(true_IND.shape), probability.view(true_IND.shape), true_IND, own_IMD)


def inspected(model, target, batch: Batch) -> dict[str, torch.Tensor] | None:
    """`Target.inspect` of a batch."""
    embeds_BTH, features_INE = model.embed(batch)
    states = model.llm.hidden(embeds_BTH, set(target.taps) | {-1})
    hidden = {tap: states_BTH.flatten(0, 1) for tap, states_BTH in states.items()}
    seen = Seen(batch=batch, hidden=hidden, features_INE=features_INE, training=False)
    return target.inspect(seen, model.truth(target, batch, features_INE))


def right_codes(model, target, batch: Batch) -> torch.Tensor:
    """See `PredictedCodes.right_IND`."""
    return predicted_codes(model, target, batch).right_IND


def report(result: dict) -> str:
    """One line for people."""
    kinds = ", ".join(f"{kind} {100 * r['accuracy']:.1f} %" for kind, r in result["by_kind"].items())
    text = f"{100 * result['accuracy']:.2f} % of {result['total']} questions ({kinds})"
    text += "".join(f", {name} loss {value:.4f}" for name, value in result["losses"].items())
    for name, values in result["codes"].items():
        text += f"; {name} codes {' / '.join(f'{100 * v:.1f}' for v in values)} % by depth"
    return text + (f"; {result['refused']} questions refused" if result["refused"] else "")
