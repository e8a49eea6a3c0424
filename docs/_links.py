"""Relative links of a Markdown page. Used by docs/_hooks.py and by tests/docs/test_links.py."""

import re
from collections.abc import Callable, Iterator

_FENCE = re.compile(r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence)[`~]* *$", re.S | re.M)
_TICKS = re.compile(r"(?<!`)(?P<ticks>`+)(?!`)[^`](?:.(?!\n\n))*?(?<!`)(?P=ticks)(?!`)", re.S)
_LINK = re.compile(r"(?<=\]\()[^()\s]+(?=(?: \"[^\"]*\")?\))")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|/")  # https:, mailto:, an absolute path


def without_code(text: str) -> str:
    """The page with its code blanked out. Length and lines stay the same."""

    def blank(code: re.Match) -> str:
        return re.sub(r"[^\n]", " ", code[0])

    return _TICKS.sub(blank, _FENCE.sub(blank, text))


def _relative(text: str) -> Iterator[re.Match]:
    return (link for link in _LINK.finditer(without_code(text)) if not _ELSEWHERE.match(link[0]))


def links(text: str) -> list[tuple[str, str]]:
    """(path, anchor) of each relative link and image of a page. One of the two may be empty."""
    parts = [link[0].partition("#") for link in _relative(text)]
    return [(path, anchor) for path, _, anchor in parts]


def replace_links(text: str, change: Callable[[str], str]) -> str:
    """The page with another path in each relative link; `change` gets the old path, never an empty one."""
    done, pieces = 0, []
    for link in _relative(text):
        path, mark, anchor = link[0].partition("#")
        pieces += [text[done : link.start()], change(path) if path else "", mark, anchor]
        done = link.end()
    return "".join([*pieces, text[done:]])
