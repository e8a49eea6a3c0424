"""Whether engines give an exported folder's answers: those of this library, or of transformers.

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
from asvr.pretrained import Pretrained, load

ALL = "all"
HERE = "asvr"  # the name of this library as the reference
REFERENCE = "transformers"
QUESTIONS = ("What is in this image?", "What differs between these two images?", "What can you do?")

logger = logging.getLogger("asvr")


@dataclass(frozen=True)
class Report:
    """text: a table with a line for each engine, and what differs. same: whether all engines that ran agree."""

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

    engine: a name in `ENGINES`, or ``all``: those that are installed. against: a saved model or work dir; its answers
    by this library are the reference, in place of those of transformers. images: shown with each question; without
    any, made ones. tolerance: nats by which a token's log probability may differ, and by which the reference must
    prefer its own token where an engine writes another one. Raises ``ValueError`` for an engine that is not installed.
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
    rows, told, same = [], [], True
    for name in names:
        version = ENGINES[name].version
        if version is None:
            rows.append([name, "-", "-", "-", f"not installed (pip install {name})"])
            continue
        try:
            found = expected if name == reference else ENGINES[name].ask(folder, asked, settings)
            _give_memory_back()
        except Exception as error:  # whatever another library raises is what this engine does with the folder
            logger.warning("%s ended with an error:", name, exc_info=True)
            rows.append([name, version, f"0 of {len(asked)}", "-", "error"])
            told.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
            same = False
            continue
        differences = [compare(*pair, tolerance) for pair in zip(expected, found, strict=True)]
        bad = [number for number, difference in enumerate(differences) if difference.told]
        largest = max(difference.largest for difference in differences)
        result = "reference" if name == reference else "differs" if bad else "same"
        rows.append([name, version, f"{len(asked) - len(bad)} of {len(asked)}", f"{largest:.4f}", result])
        told += [f"{name}, {asked[number].text!r}: {differences[number].told}" for number in bad]
        same = same and not bad
    head = ["engine", "version", "answers", "log probability differs by", "result"]
    lines = [f"{folder}, {settings.dtype}, reference: {reference}", table(head, rows).rstrip(), *told]
    return Report("\n".join(lines), same)


def made_questions(config: dict) -> list[Question]:
    """About images that are made: one of the encoder's own size, so that nothing is resized, and a wider one."""
    side = config["vision_config"]["image_size"]
    first, second = _made(side, side), _made(2 * side + side // 3, side)
    one, two, text = QUESTIONS
    return [Question(one, [first]), Question(one, [second]), Question(two, [first, second]), Question(text)]


def _made(width: int, height: int) -> Image.Image:
    """Colours that change over the image, with a disc on them."""
    y, x = np.mgrid[:height, :width] / height
    disc = ((x - width / height / 2) ** 2 + (y - 0.5) ** 2 < 0.06)[..., None]
    colours = np.stack([128 + 127 * np.sin(5 * x), 255 * y, 128 + 127 * np.cos(7 * x * y)], -1)
    return Image.fromarray(np.where(disc, (230, 40, 30), colours).astype(np.uint8))


def _ask_source(against: str, questions: list[Question], settings: Settings, image_id: int) -> list[Answer]:
    """The model is gone when this returns: the engines need its memory."""
    return ask_here(load(against, device="auto", precision="float32"), questions, settings, image_id)


def _give_memory_back() -> None:
    """What torch keeps of a model that is gone: vLLM and SGLang take a share of what is free on the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.inference_mode()
def ask_here(source: Pretrained, questions: list[Question], settings: Settings, image_id: int) -> list[Answer]:
    """This library's answers, one prompt at a time. image_id: that stands for a visual token in the prompts' ids."""
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
    """largest: of the log probabilities of a token that both wrote, in nats. told: what differs by more than is
    tolerated, "" where nothing does."""

    largest: float
    told: str = ""


def compare(expected: Answer, found: Answer, tolerance: float) -> Difference:
    """Where two tokens are nearly as probable, an engine may write the other one: what follows cannot be compared."""
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
    if ours is None or theirs is None or theirs >= expected.logprobs_TV.shape[1]:  # one ended, or an id of an image
        return False
    return expected.logprobs[t] - expected.logprobs_TV[t, theirs].item() <= tolerance
