r"""Every message that docs/troubleshooting.md explains is one that the library gives.

A heading ### `fragment` is a part of a message; `…` stands for what differs from case to case. A message of another
library has the library's name in front: ### torch: `fragment`. It is not looked up.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"


def fragments() -> list[str]:
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    return re.findall(r"^### `(.+)`$", text, re.M)


def messages(folder: Path) -> list[str]:
    """All texts of the code, each joined, with GAP for what is filled in."""
    found = []
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[-\d.]*[sdrfi]|\{[^}]*\}", GAP, node.value))
    return found


def matches(fragment: str, message: str) -> bool:
    """Whether the words of a fragment stand in a message in their order, with gaps for gaps."""
    words = [re.escape(part.strip(" '")) for part in fragment.split(GAP) if part.strip(" '")]
    return bool(words) and re.search(f"[^\n]*{GAP}[^\n]*".join(words), message) is not None


@pytest.fixture(scope="module")
def known() -> list[str]:
    return [text for folder in ("asvr", "tools") for text in messages(ROOT / folder)]


def test_each_message_is_one_of_the_code(known):
    assert [fragment for fragment in fragments() if not any(matches(fragment, message) for message in known)] == []


def test_what_is_a_message_and_what_is_not(known):
    assert any(matches("has … problem(s)", message) for message in known)
    assert any(matches("…: unknown field; …", message) for message in known)
    assert not any(matches("…: unknown fields; …", message) for message in known)
    assert not matches("a … b", "a b")
