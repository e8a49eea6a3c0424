"""Every relative link of every page leads to a file, and every anchor to a heading of it, as GitHub names them."""

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from _links import links, replace_links, without_code
from _pages.tables import slug

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
PAGES = sorted({*LISTED, *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))})


@cache
def anchors(page: Path) -> set[str]:
    """Of headings and of `<a id="...">`. Equal headings are numbered."""
    text = page.read_text(encoding="utf-8")
    plain, seen, found = without_code(text).splitlines(), Counter(), set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for line, original in zip(plain, text.splitlines(), strict=True):
        if re.match(r"#{1,6} ", line):
            title = slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", original.lstrip("# ")))
            found.add(f"{title}-{seen[title]}" if seen[title] else title)
            seen[title] += 1
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    wrong = []
    for path, anchor in links(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(f"{path}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{path}#{anchor}: there is no such heading")
    assert wrong == []


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_lists_are_lists_on_the_site_too(name):
    """GitHub takes a list without an empty line above it and one that is indented by two blanks, the site does not."""
    lines = without_code((ROOT / name).read_text(encoding="utf-8")).splitlines()
    item = re.compile(r"( *)(?:[-*+]|\d+[.)]) ")
    wrong = []
    for number, (above, line) in enumerate(zip(lines, lines[1:], strict=False), 2):
        found, inside = item.match(line), above.startswith(" ") or item.match(above)
        if found and above.strip() and not inside:
            wrong.append(f"line {number}: no empty line above the list")
        if found and len(found[1]) % 4:
            wrong.append(f"line {number}: a list in a list is indented by 4")
    assert wrong == []


def test_links_in_code_are_none():
    text = "[a](b.md#c) `[x](y)` [`code`](d.md) ![image](e.png)\n\n```text\n[f](g)\n```\n[h](https://example.org)\n"
    assert links(text) == [("b.md", "c"), ("d.md", ""), ("e.png", "")]
    changed = replace_links(text, lambda path: f"../{path}")
    assert links(changed) == [("../b.md", "c"), ("../d.md", ""), ("../e.png", "")]
    assert changed.replace("../", "") == text


def test_a_heading_has_the_anchor_that_github_gives_it():
    assert slug("`optim`, `schedule`, `runtime`") == "optim-schedule-runtime"
    assert slug("What is it? `data.max_length` & more") == "what-is-it-datamax_length--more"
