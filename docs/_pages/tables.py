"""Markdown that GitHub and the site both show."""

import re
from collections.abc import Iterable

GENERATED = "<!-- Written by `python docs/generate.py` from the code: change the code, then run it again. -->"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; "|" and line breaks in a cell are escaped."""
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "\n".join(f"| {' | '.join(_cell(item) for item in line)} |" for line in lines)


def plain(text: str) -> str:
    """Without HTML: "<" is shown, in code as it is."""
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)


def _cell(item: object) -> str:
    return " ".join(plain(str(item)).replace("|", r"\|").split())


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def literal(value: object) -> str:
    """As a config writes it: dicts with string keys by dict(...)."""
    if isinstance(value, dict) and value and all(isinstance(k, str) and k.isidentifier() for k in value):
        return f"dict({', '.join(f'{k}={literal(v)}' for k, v in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)


def page(*blocks: str) -> str:
    """Blocks with an empty line between them, under the note that the page is generated."""
    title, *rest = blocks
    return "\n\n".join([title, GENERATED, *rest]) + "\n"
