"""Encoding of conversations: from messages to token ids and labels, segment by segment.

A conversation has LLaVA's form: ``[{'from': 'human', 'value': ...}, {'from': 'gpt', 'value': ...}, ...]``, with
``<image>`` in a question at the place of an image. A system message may come first. Here one image is ONE
``IMAGE_TOKEN``.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING

from asvr.base.text import short
from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.layouts import tokens_of_images
from asvr.data.refusals import Refused
from asvr.data.templates import BOS, IMAGE, IMAGE_MARK, KINDS, Round, Segment, Template
from asvr.registry import TEMPLATES

if TYPE_CHECKING:  # the text tokenizer loads transformers
    from asvr.data.text_tokenizer import TextTokenizer

ROLES = ("human", "gpt")
SYSTEM = "system"
NOTHING = "nothing to learn"


def parse_rounds(messages: list, num_images: int, *, prompt: bool = False, moves_marks: bool = True) -> list[Round]:
    """Check a conversation and pair its questions with their answers.

    As in LLaVA, an answer before the first question is dropped. If a question has one image, its mark moves to the
    front (``<image>\\n``); several marks stay where they are written. If no question has a mark, the images go in
    front of the first question. A leading system message is not part of the rounds, see `system_of`.

    num_images: images of the record; the number of marks must be the same. prompt: leave the last answer out, if the
    conversation ends with one. moves_marks: False leaves the mark of a single image where it is written.

    Raises: `Refused` if the messages are not questions and answers in turn.
    """
    turns = [_turn(message, i) for i, message in enumerate(messages)]
    if turns and turns[0][0] == SYSTEM:
        turns = turns[1:]
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    for i, (role, _) in enumerate(turns):
        if role != ROLES[i % 2]:
            raise Refused(f"two '{role}' messages in a row: questions and answers must alternate", "roles")
    if not turns:
        raise Refused("the conversation has no question", "no conversation")
    if prompt and len(turns) % 2 == 0:
        turns = turns[:-1]
    if not prompt and len(turns) % 2:
        raise Refused("the last question has no answer", "no answer")
    questions = [value for role, value in turns if role == "human"]
    if not all(question.strip() for question in questions):
        raise Refused("a question is empty", "empty question")
    questions = _with_marks(questions, num_images, moves_marks)
    answers = [value for role, value in turns if role == "gpt"]
    answers += [None] * (len(questions) - len(answers))
    return [_round(question, answer) for question, answer in zip(questions, answers, strict=True)]


def _turn(message, i: int) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise Refused(f"message {i} is {short(message)}: expected {{'from': role, 'value': text}}", "malformed")
    role = message.get("from")
    if role == SYSTEM and i:
        raise Refused(f"message {i} is from 'system': a system message must be the first message", "roles")
    if role not in (*ROLES, SYSTEM):
        expected = "expected 'user' (or 'human') or 'assistant' (or 'gpt'), or 'system' for the first message"
        raise Refused(f"message {i} is from {short(role)}: {expected}", "roles")
    if not is_whole(message["value"]):
        raise Refused(f"message {i} has half a character (a lone surrogate): {short(message['value'])}", "malformed")
    return role, message["value"]


def system_of(messages: list) -> str | None:
    """The text of the first message if it is a system message; None if there is none or it is blank. Raises `Refused`
    if it has an image."""
    if not messages or not isinstance(messages[0], dict) or messages[0].get("from") != SYSTEM:
        return None
    _, text = _turn(messages[0], 0)
    if IMAGE_MARK in text:
        raise Refused("the system message has an image: put images into questions", "image marks")
    return text if text.strip() else None


def _with_system(template: Template, text: str | None) -> Template:
    """The template with the system message of a record in place of its own system text."""
    if text is None:
        return template
    if not is_dataclass(template) or "system" not in {field.name for field in fields(template)}:
        why = f"the template {type(template).__name__} has no place for it (no field `system`)"
        raise Refused(f"the record has a system message, and {why}", "system message")
    return replace(template, system=text)


def is_whole(text: str) -> bool:
    """Whether a text has no lone surrogate. JSON can write one; tokenizers and file names cannot hold it."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _with_marks(questions: list[str], num_images: int, moves_marks: bool) -> list[str]:
    marks = sum(question.count(IMAGE_MARK) for question in questions)
    if marks == 0 and num_images:
        marks, questions = num_images, [f"{IMAGE_MARK}\n" * num_images + questions[0], *questions[1:]]
    if marks != num_images:
        raise Refused(
            f"{marks} {IMAGE_MARK} marks in the questions, {num_images} images in the record: each mark, or image "
            "part of a message, needs one image",
            "image marks",
        )
    return [_mark_first(question) if moves_marks else question for question in questions]


def _mark_first(question: str) -> str:
    if question.count(IMAGE_MARK) != 1:
        return question
    return f"{IMAGE_MARK}\n{question.replace(IMAGE_MARK, '').strip()}".strip()


def _round(question: str, answer: str | None) -> Round:
    if answer is not None and not answer.strip():
        raise Refused(f"the answer to {short(question)} is empty", "empty answer")
    if answer is not None and IMAGE_MARK in answer:
        raise Refused(f"{IMAGE_MARK} is in an answer: put images into questions", "image marks")
    return Round(question, answer)


def segments_of(messages: list, num_images: int, template: Template, *, prompt: bool = False) -> list[Segment]:
    """The segments of a record. A record without messages gives BOS and its images."""
    if not messages:
        if not num_images:
            raise Refused("the record has neither a conversation nor an image", "no conversation")
        return [BOS, *[IMAGE] * num_images]
    template = _with_system(template, system_of(messages))
    moves_marks = getattr(template, "moves_marks", True)
    segments = list(template.segments(parse_rounds(messages, num_images, prompt=prompt, moves_marks=moves_marks)))
    _check_segments(segments, num_images, template)
    return list(merged(segments))


def _check_segments(segments: list, num_images: int, template: Template) -> None:
    """Raise ``ValueError`` if a user's own template does not keep its contract."""
    wrong = [s for s in segments if not isinstance(s, Segment) or s.kind not in KINDS]
    if wrong:
        expected = f"expected Segment(kind, ...) with one of the kinds {', '.join(KINDS)}"
        raise ValueError(f"{TEMPLATES.broken(template)}: segments() yields {short(wrong[0])}, {expected}")
    images = sum(segment.kind == "image" for segment in segments)
    if images != num_images:
        raise ValueError(
            f"{TEMPLATES.broken(template)}: segments() yields {images} images, the questions have {num_images}: yield "
            f"IMAGE at each {IMAGE_MARK} mark, as question_segments() does"
        )


def merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Join neighbouring texts that are both learned or both not learned, so that no word is cut between them."""
    last = None
    for segment in segments:
        if last and last.kind == segment.kind == "text" and last.supervised == segment.supervised:
            last = replace(last, text=last.text + segment.text)
            continue
        if last:
            yield last
        last = segment
    if last:
        yield last


def encode_segments(segments: list[Segment], tokenizer: "TextTokenizer") -> tuple[list[int], list[int]]:
    """Return (input_ids, labels).

    At the beginning and after an image, a text is encoded as a new text, as in LLaVA. After another text it continues
    that text. After a special token it is encoded as the tokenizer encodes text between special tokens."""
    input_ids, labels = [], []
    continues = False
    for segment in segments:
        if segment.kind == "text":
            ids = tokenizer.encode(segment.text, continues=continues)
            continues = True
        elif segment.kind == "image":
            ids, continues = [IMAGE_TOKEN], False
        elif segment.kind == "ids":
            ids = list(segment.ids)
        else:
            ids = _control_ids(segment, tokenizer)
            continues = bool(input_ids) and not tokenizer.prefix_after_control
        input_ids += ids
        labels += ids if segment.supervised else [IGNORE] * len(ids)
    return input_ids, labels


def _control_ids(segment: Segment, tokenizer: "TextTokenizer") -> list[int]:
    if segment.kind == "bos":
        return [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [tokenizer.eos_id] if segment.kind == "eos" else tokenizer.encode(segment.text, control=True)


def prompt_ids(messages: list, num_images: int, template: Template, tokenizer: "TextTokenizer") -> list[int]:
    """Token ids up to the beginning of the last answer. They are a prefix of the training row."""
    return encode_segments(segments_of(messages, num_images, template, prompt=True), tokenizer)[0]


def truncate(
    input_ids: list[int], labels: list[int], *, max_length: int | None, num_image_tokens: int | Sequence[int]
) -> tuple[list[int], list[int]]:
    """Cut a row to ``max_length`` positions. None: no limit.

    Only text is cut, and only at the end. Every image must fit into the limit as a whole. num_image_tokens: the
    positions that an image takes, one number for all or one for each.

    Raises: `Refused` if an image ends beyond the limit, or if the cut row has no image and no token that is learned.
    Whether the model learns from an image depends on its targets, see `require_learned`.
    """
    used = kept = 0
    sizes = iter(tokens_of_images(num_image_tokens, input_ids.count(IMAGE_TOKEN)))
    for i, token in enumerate(input_ids):
        size = next(sizes) if token == IMAGE_TOKEN else 1
        used += size
        if max_length is None or used <= max_length:
            kept = i + 1
        elif token == IMAGE_TOKEN:
            raise Refused(
                f"an image ends at position {used}, beyond max_length={max_length} (an image takes "
                f"{size} positions): raise max_length or shorten the text before it",
                "image beyond max_length",
            )
    input_ids, labels = input_ids[:kept], labels[:kept]
    if IMAGE_TOKEN not in input_ids and all(label == IGNORE for label in labels[1:]):
        cut = max_length is not None and used > max_length
        why = _no_answer(input_ids, labels, max_length if cut else None)
        raise Refused(f"{why} (the row has {used} positions), and no image", NOTHING)
    return input_ids, labels


def require_learned(
    input_ids: list[int],
    labels: list[int],
    *,
    num_image_tokens: int | Sequence[int],
    shifts: Collection[int],
    cut_to: int | None = None,
) -> None:
    """Raise `Refused` for a row from which the model learns nothing: no position has a loss.

    shifts: those of the model's targets, which learn from images. With 1, no position predicts the first token of an
    image that begins the row. cut_to: ``max_length`` if the row was cut, for the message."""
    if any(label != IGNORE for label in labels[1:]):
        return
    images = [place for place, token in enumerate(input_ids) if token == IMAGE_TOKEN]
    sizes = tokens_of_images(num_image_tokens, len(images))[: len(images)]  # a cut row has fewer than its record
    pairs = list(zip(sizes, images, strict=True))
    if any(size > (shift and place == 0) for shift in shifts for size, place in pairs):
        return
    if not images:
        why = "it has no image"
    else:
        why = "no position predicts its only visual token" if shifts else "the model has no target for images"
    raise Refused(f"{_no_answer(input_ids, labels, cut_to)}, and {why}", NOTHING)


def _no_answer(input_ids: list[int], labels: list[int], cut_to: int | None) -> str:
    """The reason why no answer of a row is learned."""
    if cut_to is not None:
        return f"no answer is left within max_length={cut_to}"
    if any(label != IGNORE for label in labels[:1]):
        return "the answer is the first token of the row, which no position predicts"
    texts = sum(token != IMAGE_TOKEN for token in input_ids)
    return "the record has no conversation" if texts <= 1 else "the row has no answer"
