"""Conversion of records from other layouts to LLaVA's form, which the rest of the library reads.

It reads the ``messages`` of OpenAI and Hugging Face (``role`` and ``content``, a text or a list of parts), ShareGPT's
``conversations`` (``from`` and ``value``) and any mixture of their spellings. LLaVA's form has ``image``, the record's
images in the order in which they are shown, and ``conversations`` with ``<image>`` at the place of each image.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from asvr.base.text import short
from asvr.data.image_sources import InlineImage, decode_base64, is_base64
from asvr.data.refusals import Refused
from asvr.data.templates import IMAGE_MARK

CONVERSATIONS = ("conversations", "messages", "conversation")  # the first one that is not empty is read
IMAGES = ("image", "images")
ROLE_KEYS, TEXT_KEYS = ("from", "role"), ("value", "content")
ROLES = dict(human="human", user="human", gpt="gpt", assistant="gpt", system="system")
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")
IMAGE_PLACES = ("image", "image_url", "url", "path", "base64")  # keys of an image part that say which image it is
PART_DESCRIBES = ("type", "detail", "annotations", "logprobs", "cache_control")
CALLS = ("tool_calls", "function_call", "tool_call_id", "audio", "tools")  # of a message


@dataclass
class _Images:
    """The images of one record.

    listed: images of the record's list that no mark and no part has used yet. shown: the images that the messages show,
    in order. own: how many of the shown images stand in a part itself."""

    listed: list
    shown: list = field(default_factory=list)
    own: int = 0

    def take(self, count: int = 1) -> None:
        self.shown += self.listed[:count]
        del self.listed[:count]

    def add(self, image) -> None:
        self.shown.append(image)
        self.own += 1


def in_llava_form(record: dict, ignore: Collection[str] = ()) -> dict:
    """The record with ``image`` and ``conversations`` in LLaVA's form. All other keys stay.

    An image is the name of a file, an `InlineImage` or a PIL image. ignore: keys of messages that are ignored.

    Raises: `Refused` for a part that is neither text nor image, a message that calls a tool, or an image with damaged
    base64.
    """
    said = next((key for key in CONVERSATIONS if _holds(record.get(key))), None)
    place = next((key for key in IMAGES if _holds(record.get(key))), None)
    if said is None and place is None:
        return record
    _refuse_second_list(record, place)
    listed = record[place] if place else []
    several = isinstance(listed, list | tuple)
    listed = list(listed) if several else [listed]
    images = _Images(listed=list(listed))
    found = {key: value for key, value in record.items() if key not in (said, place)}
    if said is not None:
        messages = record[said]
        if isinstance(messages, list | tuple):
            messages = [_message(message, i, images, ignore) for i, message in enumerate(messages)]
        found["conversations"] = messages
    if images.own and images.own == len(images.shown) and images.listed == images.shown:  # the same images once more
        images.listed.clear()
    shown = [_image(image) for image in images.shown + images.listed]
    if shown or place:
        found["image"] = shown if several or len(shown) != 1 else shown[0]
    return found


def _holds(value) -> bool:
    """Whether a value is not empty. Tables write null, empty texts or empty lists for missing values."""
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)


def _refuse_second_list(record: dict, place: str | None) -> None:
    """Refuse a record with both keys: the images in ``images`` would be lost. Names of files are checked elsewhere, see
    `asvr.data.record_keys`."""
    other = record.get("images") if place == "image" else None
    if any(_holds(image) and not isinstance(image, str) for image in (other if isinstance(other, list) else [other])):
        raise Refused("the record has images in 'image' and in 'images': use one of the two keys", "malformed")


def _message(message, i: int, images: _Images, ignore: Collection[str]):
    if not isinstance(message, dict):
        return message
    if calls := [key for key in CALLS if _holds(message.get(key)) and key not in ignore]:
        raise Refused(f"message {i} has {calls[0]!r}: tools and audio cannot be read, only text and images", "part")
    role = [key for key in ROLE_KEYS if message.get(key) is not None]
    text = [key for key in TEXT_KEYS if message.get(key) is not None]
    if len(role) != 1 or len(text) != 1:  # `asvr.data.record_keys` refuses it, with a hint
        return message
    speaker, content = message[role[0]], message[text[0]]
    if isinstance(content, list | tuple) and all(isinstance(part, dict) for part in content):
        content = _joined([_part(part, f"message {i}, part {j}", images) for j, part in enumerate(content)])
    elif isinstance(content, str):
        images.take(content.count(IMAGE_MARK))
    others = {key: value for key, value in message.items() if key not in (role[0], text[0])}
    return {"from": ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker, "value": content, **others}


def _part(part: dict, where: str, images: _Images) -> str:
    """The text of a part. An image part becomes the image mark."""
    kind = part.get("type")
    if kind not in TEXT_PARTS + IMAGE_PARTS:
        raise Refused(f"{where} has the type {short(kind)}: only text and images are read", "part")
    known = ("text",) if kind in TEXT_PARTS else IMAGE_PLACES
    given = {key: value for key, value in part.items() if key not in PART_DESCRIBES and _holds(value)}
    if unknown := [key for key in given if key not in known]:
        expected = f"a part of type {kind!r} has {' or '.join(map(repr, known))}"
        raise Refused(f"{where} has the key {short(unknown[0])}: {expected}", "part")
    if kind in TEXT_PARTS:
        text = given.get("text", "")
        if not isinstance(text, str):
            raise Refused(f"{where} has the text {short(text)}: expected a string", "part")
        images.take(text.count(IMAGE_MARK))
        return text
    if len(given) > 1:
        raise Refused(f"{where} has {' and '.join(map(repr, given))}: expected only one of them", "part")
    if given:
        images.add(dict(given) if "base64" in given else next(iter(given.values())))
    else:
        images.take()
    return IMAGE_MARK


def _joined(parts: list[str]) -> str:
    """Join the parts. Each image before the text gets a line of its own, as in LLaVA; other images stay in place."""
    parts = [part for part in parts if part]
    lead = next((i for i, part in enumerate(parts) if part != IMAGE_MARK), len(parts))
    rest = "".join(parts[lead:])
    return "\n".join(parts[:lead] + ([rest] if rest else []))


def _image(value):
    """Convert one of the spellings of an image.

    They are: a file name or ``file://`` URL, a ``data:`` URL or base64, bytes, a dict of bytes and path or with a URL,
    and a PIL image. Any other value is returned as it is; it is refused when names are checked."""
    if isinstance(value, dict):
        given = {key: own for key, own in value.items() if key in ("bytes", "path", "url", "base64") and _holds(own)}
        if "bytes" in given:
            return _image(given["bytes"])
        if isinstance(given.get("base64"), str):
            return InlineImage(decode_base64(given["base64"]))
        return _image(next(iter(given.values()))) if len(given) == 1 else value
    if isinstance(value, bytes | bytearray):
        return InlineImage(bytes(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) and is_base64(value):
        return InlineImage(decode_base64(value))
    if isinstance(value, str) and value.startswith("file://"):
        parts = urlsplit(value)
        return unquote(parts.path) if parts.netloc in ("", "localhost") else value
    return value
