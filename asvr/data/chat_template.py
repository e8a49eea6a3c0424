"""The template ``chat``: a text tokenizer's own chat template (Jinja), as transformers applies it.

The whole conversation is rendered once and encoded as transformers does, so the ids are those of
``apply_chat_template(messages, tokenize=True)``. The answers are then searched in the rendered text: an answer begins
where the generation prompt before it ends, and ends with its end token. If the template marks its answers
(``{% generation %}``), these marks decide.

The visual tokens of an image replace what the template writes for an image part: the tokenizer's ``image_token``, or
all that is written for it. If the template only takes texts, the text has ``<image>`` at the place of each image, as in
LLaVA's records.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from asvr.base.log_once import log_once
from asvr.base.text import short
from asvr.data.refusals import Refused
from asvr.data.templates import IMAGE, IMAGE_MARK, Round, Segment, Template, build_template
from asvr.registry import TEMPLATES

if TYPE_CHECKING:
    from asvr.data.text_tokenizer import TextTokenizer

PROBE, REPLY = "asvr probe", "asvr reply"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
THINKING = "</think>"  # a reasoning model writes its answer after it; templates rewrite the text before it
WARNING = 30  # the level of logging
REASON = "chat template"


@TEMPLATES.register_module(name="chat")
@dataclass(frozen=True, kw_only=True)
class Chat(Template):
    """The text tokenizer's own chat template, as ``apply_chat_template`` of transformers applies it.

    chat_template: another Jinja template, or the name of a file with one. system: the system message of records that
    have none. image_token: visual tokens replace this text in what the template writes for an image; by default the
    tokenizer's ``image_token``, or all that the template writes, see `asvr.data.chat_template`. variables: of the
    template, such as ``dict(enable_thinking=False)``.
    """

    chat_template: str | None = None
    system: str | None = None
    image_token: str | None = None
    variables: dict | None = None

    def bind(self, tokenizer: "TextTokenizer") -> Template:
        """The template of this tokenizer. Raises ``ValueError`` if it has none, or one that cannot be used."""
        return TokenizerChat.of(self, tokenizer)

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        raise ValueError(
            "the template 'chat' needs a text tokenizer, and there is none yet: train a ByteLevelBPE without "
            "template=dict(type='chat')"
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerChat(Template):
    """The chat template of one tokenizer. `Chat.bind` makes it.

    jinja: the source of the template. texts: whether it takes texts as contents. image: the text that the visual tokens
    of an image replace. image_parts: whether the template renders image parts itself. ending: the text after an answer,
    up to and including the end token. stop: the end token if it is not EOS. system: the system message of records that
    have none. variables: of the template, such as ``enable_thinking``. control: the control tokens, which no text may
    contain.
    """

    tokenizer: "TextTokenizer"
    jinja: str
    texts: bool
    variables: dict
    control: tuple[str, ...]
    image: str = IMAGE_MARK
    image_parts: bool = False
    ending: str = ""
    stop: str | None = None
    system: str | None = None

    moves_marks = False

    @classmethod
    def of(cls, config: Chat, tokenizer: "TextTokenizer") -> "TokenizerChat":
        """Build it. Raises ``ValueError`` if the tokenizer has no chat template, or one that cannot be used."""
        own = dict(tokenizer=tokenizer, jinja=jinja_source(config, tokenizer), variables=dict(config.variables or {}))
        own["control"] = _control_tokens(tokenizer.hf)
        if "strftime_now" in own["jinja"] and not config.variables:
            log_once(WARNING, "template 'chat': the chat template writes today's date, so rows differ from day to day")
        as_text, as_parts = cls(texts=True, **own), cls(texts=False, **own)
        why, why_no_parts = (chat._why_no_question() for chat in (as_text, as_parts))
        texts, parts = why is None, why_no_parts is None
        if not texts and not parts:
            raise ValueError(f"template 'chat': the chat template of {_name(tokenizer)} does not write a question{why}")
        chat = as_text if texts else as_parts
        ending, token = chat._end_of_an_answer()
        found = dict(texts=texts, ending=ending, stop=None if token == tokenizer.hf.eos_token else token)
        written = as_parts._written_for_an_image() if parts else ""
        if config.image_token is not None and config.image_token not in written:
            raise ValueError(
                f"template.image_token={config.image_token!r}: the template writes {written!r} for an image"
            )
        if written:
            token = config.image_token or getattr(tokenizer.hf, "image_token", None) or IMAGE_MARK
            found |= dict(image=token if token in written else written, image_parts=True)
        return cls(system=config.system, **own, **found)

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        messages, asked = self._messages(rounds), rounds[-1].answer is None
        self._refuse_control_tokens(messages)
        text = self._write(messages, prompt=asked)
        self._refuse_lost_text(messages, text)
        images = sum(turn.question.count(IMAGE_MARK) for turn in rounds)
        if text.count(self.image) != images:
            found = f"{text.count(self.image)} times {self.image!r} for {images} images"
            raise Refused(f"the chat template writes {found}: expected one for each image", REASON)
        spans = [] if asked else self._answers(messages, text)
        at = 0
        for number, piece in enumerate(text.split(self.image)):
            if number:
                yield IMAGE
                at += len(self.image)
            yield from self._encoded(piece, at, spans)
            at += len(piece)

    def _messages(self, rounds: list[Round]) -> list[dict]:
        messages = [dict(role="system", content=self._content(self.system))] if self.system else []
        for turn in rounds:
            messages.append(dict(role="user", content=self._content(turn.question)))
            if turn.answer is not None:
                messages.append(dict(role="assistant", content=self._content(turn.answer)))
        return messages

    def _content(self, text: str) -> str | list[dict]:
        if not self.image_parts or IMAGE_MARK not in text:
            return text if self.texts else [dict(type="text", text=text)]
        return _parts(text)

    def _write(self, messages: list[dict], *, prompt: bool = False) -> str:
        try:
            return self.tokenizer.hf.apply_chat_template(
                messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=prompt, **self.variables
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # what templates raise for unknown content
            why = " ".join(str(error).split())
            raise Refused(f"the chat template does not take the conversation: {why}", REASON) from error

    def _answers(self, messages: list[dict], text: str) -> list[tuple[int, int]]:
        """The places of the answers in the rendered text: first character, and the one after the last."""
        if GENERATION.search(self.jinja):
            from transformers.utils.chat_template_utils import render_jinja_template  # here: it loads transformers

            _, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self.jinja,
                return_assistant_tokens_mask=True,
                **self.tokenizer.hf.special_tokens_map | self.variables,
            )
            return spans[0]
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return [self._answer(messages, i, text) for i in places]

    def _answer(self, messages: list[dict], i: int, text: str) -> tuple[int, int]:
        prompt, answer = self._write(messages[:i], prompt=True), text_of(messages[i])
        if not text.startswith(prompt):
            why = f"the chat template writes the prompt of message {i} in another way when its answer follows"
            raise Refused(why, REASON)
        end = text.find(self.ending, len(prompt))  # no text has its control token, so this is the answer's own
        forms = (answer, answer.strip(), answer.rpartition(THINKING)[2].strip())  # templates trim, drop reasoning
        if end >= 0 and text[len(prompt) : end].endswith(forms):
            return len(prompt), end + len(self.ending)
        raise Refused(f"the chat template does not write message {i} (assistant) as it is: {short(answer)}", REASON)

    def _encoded(self, piece: str, at: int, spans: list[tuple[int, int]]) -> Iterator[Segment]:
        """The ids of a piece of the rendered text. at: where it begins."""
        if not piece:
            return
        found = self.tokenizer.hf(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        learned = ((token, self._is_learned(piece, at, b, e, spans)) for token, (b, e) in pairs)
        for supervised, group in groupby(learned, key=lambda pair: pair[1]):
            yield Segment("ids", supervised=supervised, ids=tuple(token for token, _ in group))

    def _is_learned(self, piece: str, at: int, first: int, end: int, spans: list[tuple[int, int]]) -> bool:
        """A token is learned if a part of it is. A control token may take the white space behind it, which can be an
        answer's: its first character decides. first, end: where the token stands in the piece."""
        last = first if piece[first:end].strip() in self.control else end - 1
        return any(at + first < stop and at + last >= start for start, stop in spans)

    def _refuse_control_tokens(self, messages: list[dict]) -> None:
        """Refuse texts with control tokens: they are encoded together with the template, and would become real ones."""
        control = self.control + ((self.image,) if self.image_parts else ())
        for i, message in enumerate(messages):
            text = text_of(message).replace(IMAGE_MARK, "")
            if found := [token for token in control if token in text]:
                raise Refused(
                    f"the text of message {i} contains the control token {found[0]!r}, which the template 'chat' "
                    "cannot encode as plain text",
                    "control token",
                )

    def _refuse_lost_text(self, messages: list[dict], text: str) -> None:
        for i, message in enumerate(messages):
            pieces = [part for part in text_of(message).split(IMAGE_MARK) if part.strip()]
            if message["role"] != "assistant" and not all(piece.strip() in text for piece in pieces):
                raise Refused(f"the chat template changes the text of message {i} ({message['role']})", REASON)

    def _why_no_question(self) -> str | None:
        """Why the template does not render a question in this form; None if it does."""
        try:
            text = self._write([dict(role="user", content=self._content(PROBE))], prompt=True)
        except Refused as error:
            return f": {error.__cause__}"
        return None if PROBE in text and "'type'" not in text and '"type"' not in text else ""

    def _end_of_an_answer(self) -> tuple[str, str]:
        """The text that the template writes after an answer, up to the first special token, and that token."""
        tail = self._write(self._messages([Round(PROBE, REPLY)])).rpartition(REPLY)[2]
        found = sorted((tail.index(token), -len(token), token) for token in self.control if token in tail)
        if not found:
            raise ValueError(
                f"template 'chat': the chat template of {_name(self.tokenizer)} ends an answer with {tail!r}, without "
                "a special token, so the model could not stop: give another chat_template"
            )
        place, _, token = found[0]
        return tail[: place + len(token)], token

    def _written_for_an_image(self) -> str:
        """The text that the template writes for an image part; "" if it takes none."""
        text = dict(type="text", text=PROBE)
        try:
            plain, shown = (
                self._write([dict(role="user", content=content)], prompt=True)
                for content in ([text], [dict(type="image"), text])
            )
        except Refused:
            return ""
        head = next((i for i, (a, b) in enumerate(zip(plain, shown, strict=False)) if a != b), len(plain))
        written = shown[head : head + len(shown) - len(plain)]
        return written.strip() if shown[:head] + shown[head + len(written) :] == plain and PROBE not in written else ""


def _control_tokens(hf) -> tuple[str, ...]:
    """All special tokens. The unknown token counts only if it also begins or ends a text (GPT-2)."""
    special = {token.content for token in hf.added_tokens_decoder.values() if token.special}
    return tuple(sorted(special - ({hf.unk_token} - {hf.bos_token, hf.eos_token})))


def jinja_source(config: Chat, tokenizer: "TextTokenizer") -> str:
    """The Jinja template of the config, or else of the tokenizer. Raises ``ValueError`` if there is none."""
    if config.chat_template is not None:
        return read_jinja(config.chat_template)
    try:
        return tokenizer.hf.get_chat_template()
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"template 'chat': the text tokenizer {_name(tokenizer)} has no chat template: use another template, or "
            "give one: dict(type='chat', chat_template='file.jinja')"
        ) from error


def read_jinja(given: str) -> str:
    """A Jinja template, given as text or as the name of a file."""
    if "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"template.chat_template={given!r} is neither a Jinja template nor its file: {error}"
        ) from error


def portable_template(template: str | dict) -> str | dict:
    """The config of a template, with the content of its file in place of the name."""
    if not isinstance(template, dict) or template.get("type") != "chat" or template.get("chat_template") is None:
        return template
    return dict(template, chat_template=read_jinja(template["chat_template"]))


def chat_template_digest(template: "str | dict | Template", tokenizer: "TextTokenizer") -> str | None:
    """SHA-256 (16 hex digits) of the Jinja template of the rows; None for other templates."""
    own = build_template(template)
    return hashlib.sha256(jinja_source(own, tokenizer).encode()).hexdigest()[:16] if isinstance(own, Chat) else None


def text_of(message: dict) -> str:
    """The text of a message, with image marks."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else IMAGE_MARK for part in content)


def _parts(question: str) -> list[dict]:
    """Texts and images of a question. LLaVA writes a line break after an image before the text; it is not part
    of the text."""
    parts, leads = [], True
    for number, text in enumerate(question.split(IMAGE_MARK)):
        if number:
            parts.append(dict(type="image"))
            text = text.removeprefix("\n") if leads else text
        if text:
            parts.append(dict(type="text", text=text))
            leads = False
    return parts


def _name(tokenizer: "TextTokenizer") -> str:
    return getattr(getattr(tokenizer, "hf", None), "name_or_path", "") or type(tokenizer).__name__
