"""Check of an exported folder: do the engines give the same answers as this library or transformers?

Legend: ``T`` new tokens of an answer, ``V`` vocabulary.
"""

import gc
import logging
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asvr.base.text import table
from asvr.data.images import open_image
from asvr.interchange.processors import template_of
from asvr.interchange.serving import ENGINES, Answer, Question, Settings, as_answer, check_folder
from asvr.loading import load
from asvr.pretrained import Pretrained

ALL = "all"
HERE = "asvr"  # the name of this library as the reference
REFERENCE = "transformers"
QUESTIONS = ("What is in this image?", "What differs between these two images?", "What can you do?")

logger = logging.getLogger("asvr")


@dataclass(frozen=True)
class Report:
    """The result of a check. text: a table with a line per engine, and the differences. same: whether all engines that
    ran agree."""

    text: str
    same: bool


def check_export(
    folder: Path,
    *,
    engine: str = ALL,
    against: str | None = None,
    images: list[Path] = (),
    questions: list[str] = (),
    settings: Settings | None = None,
    tolerance: float = 0.05,
) -> Report:
    """Ask the folder in each engine and compare.

    engine: a name in `ENGINES`, or ``all`` for all that are installed. against: a saved model or work dir. This library
    then gives the reference answers; otherwise transformers does. images: shown with each question; without them,
    synthetic images are used. tolerance: how much a log probability may differ, in nats. An engine may also write
    another token than the reference, if their log probabilities differ by at most this. Raises ``ValueError`` for an
    engine that is not installed.
    """
    config, settings = check_folder(folder), settings or Settings()
    names = list(ENGINES) if engine == ALL else [engine]
    if engine != ALL and ENGINES[engine].version is None:
        raise ValueError(f"--engine {engine}: {engine} is not installed (pip install {engine})")
    asked = [Question(text, [open_image(file) for file in images]) for text in questions or QUESTIONS[:1]]
    asked = asked if images or questions else made_questions(config)
    if against is None:
        reference, expected = REFERENCE, ENGINES[REFERENCE].ask(folder, asked, settings)
    else:
        reference, expected = HERE, _ask_source(against, asked, settings, config["image_token_index"])
    _give_memory_back()
    rows, problems, same = [], [], True
    for name in names:
        version = ENGINES[name].version
        if version is None:
            rows.append([name, "-", "-", "-", f"not installed (pip install {name})"])
            continue
        try:
            found = expected if name == reference else ENGINES[name].ask(folder, asked, settings)
            _give_memory_back()
        except Exception as error:  # another library may raise anything, and the report must say it
            logger.warning("%s ended with an error:", name, exc_info=True)
            rows.append([name, version, f"0 of {len(asked)}", "-", "error"])
            problems.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
            same = False
            continue
        differences = [compare(*pair, tolerance) for pair in zip(expected, found, strict=True)]
        bad = [number for number, difference in enumerate(differences) if difference.problem]
        largest = max(difference.largest for difference in differences)
        result = "reference" if name == reference else "differs" if bad else "same"
        rows.append([name, version, f"{len(asked) - len(bad)} of {len(asked)}", f"{largest:.4f}", result])
        problems += [f"{name}, {asked[number].text!r}: {differences[number].problem}" for number in bad]
        same = same and not bad
    head = ["engine", "version", "answers", "log probability differs by", "result"]
    lines = [f"{folder}, {settings.dtype}, reference: {reference}", table(head, rows).rstrip(), *problems]
    return Report("\n".join(lines), same)


def made_questions(config: dict) -> list[Question]:
    """Questions about synthetic images: one of the encoder's own size, which is not resized, and a wider one."""
    side = config["vision_config"]["image_size"]
    first, second = _made(side, side), _made(2 * side + side // 3, side)
    one, two, text = QUESTIONS
    return [Question(one, [first]), Question(one, [second]), Question(two, [first, second]), Question(text)]


def _made(width: int, height: int) -> Image.Image:
    """An image of smooth colours with a disc."""
    y, x = np.mgrid[:height, :width] / height
    disc = ((x - width / height / 2) ** 2 + (y - 0.5) ** 2 < 0.06)[..., None]
    colours = np.stack([128 + 127 * np.sin(5 * x), 255 * y, 128 + 127 * np.cos(7 * x * y)], -1)
    return Image.fromarray(np.where(disc, (230, 40, 30), colours).astype(np.uint8))


def _ask_source(against: str, questions: list[Question], settings: Settings, image_id: int) -> list[Answer]:
    """The answers of this library. Its model is freed on return, because the engines need the memory."""
    return ask_here(load(against, device="auto", precision="float32"), questions, settings, image_id)


def _give_memory_back() -> None:
    """Free the memory that torch keeps of a deleted model. vLLM and SGLang take a share of the free memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.inference_mode()
def ask_here(source: Pretrained, questions: list[Question], settings: Settings, image_id: int) -> list[Answer]:
    """The answers of this library, one prompt at a time. image_id: the id of a visual token in a prompt's ids."""
    answers, tokenizer = [], source.text_tokenizer
    stop = template_of(source).stop
    stops = [tokenizer.eos_id, *([] if stop is None else tokenizer.encode(stop, control=True))]
    for question in questions:
        messages = [{"from": "human", "value": question.text}]
        batch = source.batch([dict(images=question.images, messages=messages)])
        embeds_BTH, _ = source.model.embed(batch)
        out = source.model.llm.generate(
            embeds_BTH,
            batch.attention_mask_BT,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=tokenizer.pad_id,
            eos_token_id=stops,
            suppress_tokens=[image_id],  # as the export's generation_config.json says
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        prompt = [image_id if token < 0 else token for token in batch.input_ids_BT[0].tolist()]
        answers.append(as_answer(out.sequences[0], out.logits, tokenizer.hf.decode, prompt))
    return answers


@dataclass(frozen=True)
class Difference:
    """The difference of two answers.

    largest: the largest difference of log probabilities of a token that both wrote, in nats. problem: a difference
    above the tolerance, in words; "" if there is none.
    """

    largest: float
    problem: str = ""


def compare(expected: Answer, found: Answer, tolerance: float) -> Difference:
    """Compare two answers. An engine may write another token that is nearly as probable. The comparison ends there."""
    if found.prompt is not None and found.prompt != expected.prompt:
        return Difference(0.0, f"the prompt has the token ids {found.prompt}, expected {expected.prompt}")
    largest = 0.0
    for t, (ours, theirs) in enumerate(zip_longest(expected.ids, found.ids)):
        if ours != theirs:
            if _nearly_as_probable(expected, t, ours, theirs, tolerance):
                return Difference(largest)
            return Difference(largest, f"token {t} is {theirs}, expected {ours}: {found.text!r} for {expected.text!r}")
        largest = max(largest, abs(expected.logprobs[t] - found.logprobs[t]))
        if largest > tolerance:
            return Difference(
                largest,
                f"token {t} has log probability {found.logprobs[t]:.4f}, expected {expected.logprobs[t]:.4f}",
            )
    return Difference(largest)


def _nearly_as_probable(expected: Answer, t: int, ours: int | None, theirs: int | None, tolerance: float) -> bool:
    if ours is None or theirs is None or theirs >= expected.logprobs_TV.shape[1]:  # one has ended, or an image's id
        return False
    return expected.logprobs[t] - expected.logprobs_TV[t, theirs].item() <= tolerance
