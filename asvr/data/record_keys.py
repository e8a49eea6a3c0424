"""Keys of a record that nobody reads: they are ignored, logged, or a reason to refuse the record.

The content of a record is in ``image`` and ``conversations``, that of a message in ``from`` and ``value``. A key under
which another layout has its content is refused, and so is a misspelled key: training without that part would be
training on another record. Such a key is accepted if all of its text also stands in the keys that are read. Keys that
describe a record (its source, a size) are ignored. All other keys are logged once.
"""

import difflib
from collections.abc import Collection, Iterator

from asvr.base.text import short
from asvr.data.refusals import Refused
from asvr.data.templates import IMAGE_MARK

READ = ("image", "conversations")
MESSAGE = ("from", "value")
UNKNOWN = "unknown key"
# Keys that describe a record in LLaVA, LLaVA-NeXT, ShareGPT, ShareGPT4V, InternVL, Cambrian and img2dataset.
DESCRIBES = frozenset(
    """id idx index key uid uuid sha256 md5 hash category model source dataset data_source dataset_name data_type type
    task task_name domain subset split language lang license url urls file_name filename image_url image_path
    image_size image_name image_source width height width_list height_list original_width original_height size exif
    status error_message similarity score metadata meta meta_info version date timestamp length""".split()
)
MESSAGE_DESCRIBES = frozenset("id idx model source markdown generated language lang timestamp tokens".split())
# Keys of content in other layouts -> the key here that means the same; None: there is none.
CONTENT = {
    **dict.fromkeys("messages conversation conv convs dialog dialogue chat turns history".split(), "conversations"),
    **dict.fromkeys(
        "text texts txt caption captions blip_caption prompt query question questions".split(), "conversations"
    ),
    **dict.fromkeys("response answer answers instruction input output completion".split(), "conversations"),
    **dict.fromkeys("images image_list img imgs picture pictures photo photos".split(), "image"),
    **dict.fromkeys("video videos audio audios speech objects system system_prompt tools".split()),
    **dict.fromkeys("chosen rejected".split()),
}
# Keys of a message in other layouts -> the key here.
MESSAGE_CONTENT = {
    **dict.fromkeys("role speaker sender author".split(), "from"),
    **dict.fromkeys("content text message utterance".split(), "value"),
}
WEIGHTS = frozenset("weight sample_weight loss loss_weight".split())  # other values than 1 would change a loss
PROVENANCE = frozenset("id url urls source data_source license".split())  # values may end like the name of an image
IMAGE_ENDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LONG = 20  # characters
MISSPELLED = 0.8  # difflib's ratio: one letter of `image` is wrong, missing or doubled
NEAR = 0.7  # two letters of `from` are swapped; it only decides a hint in a message


def unread_keys(record: dict, ignore: Collection[str] = ()) -> list[str]:
    """The keys of a record that are not read and should be logged.

    ignore: keys that the user wants to be ignored, in a record and in its messages.

    Raises: `Refused` where content would be lost: a content key of another layout, a misspelled key, text in a record
    without conversation, the name of an image in a record without image, or an unknown key in a message.
    """
    _refuse_in_messages(record.get("conversations"), ignore)
    others = [key for key in record if key not in READ and key not in ignore and not _is_empty(record[key])]
    found = [key for key in others if key not in DESCRIBES and not str(key).lower().endswith("_id")]
    for key in found:
        meant = meant_by(key, [name for name in READ if not _is_empty(record.get(name))])
        if is_content(key, meant) and _says_something(record[key]) and not _stands_in(record[key], record):
            raise unknown_key(key, meant)
        if str(key).lower() in WEIGHTS and record[key] != 1:
            raise unknown_key(key, None)
        if _is_empty(record.get("conversations")) and _says_something(record[key]):
            raise Refused(f"{UNKNOWN} {short(key)} in a record without 'conversations'; {_remedy(key)}", UNKNOWN)
    for key in others if _is_empty(record.get("image")) else ():
        if str(key).lower() not in PROVENANCE and any(
            text.lower().endswith(IMAGE_ENDS) for text in _strings(record[key])
        ):
            raise Refused(f"{UNKNOWN} {short(key)} names an image in a record without 'image'; {_remedy(key)}", UNKNOWN)
    return found


def meant_by(key: str, there: Collection[str] = ()) -> str | None:
    """The key that ``key`` probably means: ``key`` is its name in another layout, or misspelled.

    there: the keys that the record has. ``key`` is not taken as a misspelling of one of them (``image_w`` beside
    ``image``)."""
    name = str(key).lower()
    if name in CONTENT:
        return CONTENT[name]
    missing = [own for own in READ if own not in there]
    return next(iter(difflib.get_close_matches(name, missing, n=1, cutoff=MISSPELLED)), None)


def is_content(key: str, meant: str | None) -> bool:
    """Whether a key holds content, which a model could learn from. meant: what `meant_by` returned."""
    return meant is not None or str(key).lower() in CONTENT


def _says_something(value) -> bool:
    """Whether a value contains text. Numbers, False and blank texts are no content."""
    return any(text.strip() for text in _strings(value))


def unknown_key(key: str, meant: str | None, what: str = "key") -> Refused:
    hint = f"did you mean {meant!r}? If not, {_remedy(key)}" if meant else _remedy(key)
    return Refused(f"unknown {what} {short(key)}; {hint}", UNKNOWN)


def _remedy(key: str) -> str:
    return f"give the dataset ignore=[{short(key)}] to train without it"


def _refuse_in_messages(messages, ignore: Collection[str]) -> None:
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if (key := unread_in_message(message, ignore)) is not None:
            raise Refused(f"{UNKNOWN} {short(key)} in message {i}; {meant_in(message, key) or _remedy(key)}", UNKNOWN)


def unread_in_message(message, ignore: Collection[str] = ()) -> str | None:
    """The first key of a message that is not read and may hold content or a weight of the loss; else None."""
    if not isinstance(message, dict) or message.keys() <= {*MESSAGE}:
        return None
    known = {*MESSAGE, *MESSAGE_DESCRIBES, *ignore}
    known |= {spelling for spelling, own in (("role", "from"), ("content", "value")) if message.get(own) is None}
    others = [key for key, value in message.items() if key not in known and not _is_empty(value)]
    return next((key for key in others if key not in WEIGHTS or message[key] != 1), None)


def meant_in(message: dict, key: str) -> str | None:
    """A hint for an unknown key of a message that lacks ``from`` or ``value``; None if it has both."""
    missing = [own for own in MESSAGE if message.get(own) is None]  # tables write null
    if not missing:
        return None
    name = str(key).lower()
    near = difflib.get_close_matches(name, missing, n=1, cutoff=NEAR)
    meant = MESSAGE_CONTENT.get(name) or next(iter(near), None)
    question = f"did you mean {meant!r}? A message is" if meant in missing else "a message is"
    return f"{question} {{'from': 'human' or 'gpt', 'value': text}}"


def _is_empty(value) -> bool:
    """Whether a value is empty, as tables write it for a row without that value."""
    return value is None or (isinstance(value, str | list | dict) and not len(value))


def _strings(value) -> Iterator[str]:
    """Every text in a JSON value, without the keys of objects."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _stands_in(value, record: dict) -> bool:
    """Whether all texts of a value also stand in the keys that are read, so that nothing is lost.

    A text must be a whole message or name. A long text may also be a part of one: that is no coincidence."""
    texts = [_bare(text) for text in _strings(value)]
    read = [_bare(text) for text in _strings([record.get(key) for key in READ])]
    return bool(texts) and all(text in read or (len(text) >= LONG and any(text in r for r in read)) for text in texts)


def _bare(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip()
