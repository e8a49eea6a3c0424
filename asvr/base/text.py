"""Text for people: short values, suggestions for misspelt names, tables."""

import difflib
import hashlib
import inspect
import re
import reprlib
from collections.abc import Iterable

FEW = 12  # so many names are all listed
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def printable(text: str) -> str:
    """The text with escapes for control characters, lone surrogates and the like. Line breaks stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def short(value) -> str:
    """The repr of a value, cut to about a hundred characters."""
    return _SHORT.repr(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'a' or 'b'?``. If no name is near, it lists known names, at most a few."""
    by_lower = {item.lower(): item for item in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(by_lower[item]) for item in near) + "?"
    if len(by_lower) <= FEW:
        return f"known: {', '.join(sorted(by_lower.values())) or 'none'}"
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=FEW // 2, cutoff=0)
    return f"known: {', '.join(by_lower[item] for item in near)} and {len(by_lower) - len(near)} more"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def source_of_class(kind: type) -> str:
    """An identifier of a class: its name, and a hash of its source if that can be read."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # the class of a notebook cell that is gone
        source = ""
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


def first_sentence(text: str) -> str:
    """The first sentence of a docstring or a comment, on one line."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split()).replace("``", "`")
    return re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.) (?=[A-Z`#(])", paragraph, maxsplit=1)[0]
