"""Conversation templates: they turn questions and answers into segments of text.

A template never sees a token. It says which pieces of text follow each other and which of them are learned.
`asvr.data.conversation` encodes piece by piece, so the labels need no counting.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asvr.data.refusals import Refused
from asvr.registry import TEMPLATES

if TYPE_CHECKING:  # it loads transformers
    from asvr.data.text_tokenizer import TextTokenizer

IMAGE_MARK = "<image>"  # in a question, the place of one image
KINDS = ("text", "bos", "eos", "image", "token", "ids")  # of a `Segment`

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Segment:
    """A piece of a row.

    kind: ``text``, ``bos``, ``eos``, ``image``, ``token`` (``text`` names a special token) or ``ids`` (token ids as
    they are). supervised: whether the model learns to write it."""

    kind: str
    text: str = ""
    supervised: bool = False
    ids: tuple[int, ...] = ()


BOS, IMAGE, EOS = Segment("bos"), Segment("image"), Segment("eos", supervised=True)


@dataclass(frozen=True)
class Round:
    """A question with its image marks, and its answer. ``answer`` is None if the model shall write it."""

    question: str
    answer: str | None


def question_segments(question: str) -> Iterator[Segment]:
    """The segments of a question: its images, and the texts between them."""
    for i, text in enumerate(question.split(IMAGE_MARK)):
        if i:
            yield IMAGE
        if text:
            yield Segment("text", text)


class Template:
    """The base class of templates. A subclass writes ``segments(rounds)``.

    It stops before an answer that is None: generation begins there, so a prompt is a prefix of the training row. If the
    template is a dataclass with a field ``system``, a record's system message replaces that field.

    stop: the special token that ends an answer, if it is not EOS. stop_text: the text that ends an answer, if there is
    no such token. moves_marks: whether the mark of a question's single image moves to the front, as in LLaVA."""

    stop: str | None = None
    stop_text: str | None = None
    moves_marks: bool = True

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        raise NotImplementedError(f"{type(self).__name__} must have segments(rounds)")


@TEMPLATES.register_module(name="plain")
@dataclass(frozen=True, kw_only=True)
class Plain(Template):
    """An image and its caption, for the alignment stage (LLaVA's ``plain``).

    Only the image marks of the question are used. The answer is learned, up to and including ``end``.

    end: the text that ends a caption.
    """

    end: str = "\n"

    @property
    def stop_text(self) -> str:
        return self.end

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        if len(rounds) != 1 or IMAGE_MARK not in rounds[0].question:
            raise Refused(
                "the template 'plain' takes one image caption, a single question with an image and its answer: "
                "use a chat template (vicuna_v1, llama_2, mistral, chatml) for conversations",
                "not a caption",
            )
        yield BOS
        yield from (s for s in question_segments(rounds[0].question) if s.kind == "image")
        if rounds[0].answer is not None:
            yield Segment("text", rounds[0].answer + self.end, supervised=True)


@TEMPLATES.register_module(name="vicuna_v1")
@dataclass(frozen=True, kw_only=True)
class VicunaV1(Template):
    """The form of Vicuna and LLaVA-1.5 (``v1``): ``SYSTEM USER: question ASSISTANT: answer</s>USER: ...``

    system: the system text. user: the name in front of a question. assistant: the name in front of an answer."""

    system: str = VICUNA_SYSTEM
    user: str = "USER"
    assistant: str = "ASSISTANT"

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        yield BOS
        if self.system:
            yield Segment("text", f"{self.system} ")
        for turn in rounds:
            yield Segment("text", f"{self.user}: ")
            yield from question_segments(turn.question)
            yield Segment("text", f" {self.assistant}:")
            if turn.answer is not None:
                yield Segment("text", f" {turn.answer}", supervised=True)
                yield EOS


@dataclass(frozen=True, kw_only=True)
class _Inst(Template):
    """The form ``[INST] question [/INST] answer </s>``.

    system: the system text. bos_each_round: whether every round begins with BOS."""

    system: str = ""
    bos_each_round: bool = False

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        for i, turn in enumerate(rounds):
            if i == 0 or self.bos_each_round:
                yield BOS
            system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system and i == 0 else ""
            yield Segment("text", f"[INST] {system}")
            yield from question_segments(turn.question)
            yield Segment("text", " [/INST]")
            if turn.answer is not None:
                yield Segment("text", f" {turn.answer} ", supervised=True)
                yield EOS


@TEMPLATES.register_module(name="llama_2")
@dataclass(frozen=True, kw_only=True)
class Llama2(_Inst):
    """The form of Llama-2-Chat, with LLaVA's system text. Every round has its own BOS."""

    system: str = LLAVA_LLAMA_2_SYSTEM
    bos_each_round: bool = True


@TEMPLATES.register_module(name="mistral")
@dataclass(frozen=True, kw_only=True)
class Mistral(_Inst):
    """The form of Mistral-Instruct (LLaVA's ``mistral_instruct``), with one BOS and without system text."""


@TEMPLATES.register_module(name="chatml")
@dataclass(frozen=True, kw_only=True)
class ChatML(Template):
    """The form of Qwen: ``<|im_start|>role\\n...<|im_end|>\\n``. The answer and its ``<|im_end|>`` are learned.

    system: the system text. start: the special token in front of a message. end: the special token after a message."""

    system: str = "You are a helpful assistant."
    start: str = "<|im_start|>"
    end: str = "<|im_end|>"

    @property
    def stop(self) -> str:
        return self.end

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        yield BOS
        if self.system:
            yield from self._opening("system", self.system)
            yield from self._closing()
        for turn in rounds:
            yield from self._opening("user")
            yield from question_segments(turn.question)
            yield from self._closing()
            yield from self._opening("assistant")
            if turn.answer is not None:
                yield Segment("text", turn.answer, supervised=True)
                yield from self._closing(supervised=True)

    def _opening(self, role: str, text: str = "") -> Iterator[Segment]:
        yield Segment("token", self.start)
        yield Segment("text", f"{role}\n{text}")

    def _closing(self, supervised: bool = False) -> Iterator[Segment]:
        yield Segment("token", self.end, supervised)
        yield Segment("text", "\n")


def build_template(template: "str | dict | Template", tokenizer: "TextTokenizer | None" = None) -> Template:
    """Build a template from its name or config; a template stays as it is. tokenizer: for the template ``chat``."""
    template = _built(template)
    return template.bind(tokenizer) if tokenizer is not None and hasattr(template, "bind") else template


def _built(template: "str | dict | Template") -> Template:
    if isinstance(template, str):
        template = dict(type=template)
    if not isinstance(template, dict):
        return template
    name = template.get("type")
    if isinstance(name, str) and TEMPLATES.get(name) is None:
        raise ValueError(f"template {name!r} is unknown: expected one of {', '.join(sorted(TEMPLATES.module_dict))}")
    return TEMPLATES.build(template)
