"""Hooks of mkdocs for three things that GitHub shows and mkdocs does not.

Links that leave docs/ (`../configs/asvr_mini.py`): each target becomes a page of the site below `files/`. A Markdown
file is shown as it is, source code as a block, a folder as the list of its files. Anything else is copied. So the same
relative link works on GitHub and on the site, and `mkdocs build --strict` reports a link that leads nowhere.

Formulas: `$...$` and `$$...$$` become MathML, which browsers draw without a script.

Code in tables: `a\\|b` is a|b there.
"""

import html
import posixpath
import re
from pathlib import Path

from _links import links, replace_links
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
DOCS, OUTSIDE = "docs/", "files/"
LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".sbatch": "bash",
    ".sh": "bash",
    ".cff": "yaml",
    ".yaml": "yaml",
    "": "text",
}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files, config):
    """Add the pages of what the site's pages link to outside docs/, and of what those link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    texts = {uri: (ROOT / DOCS / uri).read_text(encoding="utf-8") for uri in waiting}
    while waiting:
        uri = waiting.pop()
        for path, _ in links(texts[uri]):
            target = repository_path(uri, path) if path else DOCS
            if target.startswith(DOCS) or not (ROOT / target).exists() or site_uri(target) in files.src_uris:
                continue
            file = _file(config, target)
            files.append(file)
            if file.is_documentation_page():
                texts[file.src_uri] = file.content_string
                waiting.append(file.src_uri)
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri

    def change(path: str) -> str:
        target = repository_path(uri, path)
        if target.startswith(("../", "/")) or not (ROOT / target).exists():
            return path  # which mkdocs reports
        return posixpath.relpath(site_uri(target), posixpath.dirname(uri) or ".")

    return replace_links(markdown, change)


def on_page_content(content, page, config, files):
    """`pymdownx.arithmatex` has marked the formulas, inline and of a line of their own."""
    content = re.sub(r"<td[^>]*>.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), content, flags=re.S)
    if "arithmatex" not in content:
        return content
    from latex2mathml.converter import convert

    def formula(found: re.Match) -> str:
        inline = found["open"] == r"\("
        return convert(html.unescape(found["tex"]).strip(), display="inline" if inline else "block")

    return re.sub(
        r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>',
        formula,
        content,
        flags=re.S,
    )


def repository_path(uri: str, path: str) -> str:
    """Where a link of a page leads, from the repository's root."""
    own = uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS + uri
    return posixpath.normpath(posixpath.join(posixpath.dirname(own), path))


def site_uri(target: str) -> str:
    """The file of the site that stands for a file or folder of the repository."""
    if target.startswith(DOCS):
        return target.removeprefix(DOCS)
    if (ROOT / target).is_dir():
        return f"{OUTSIDE}{target}/{'README.md' if (ROOT / target / 'README.md').is_file() else 'index.md'}"
    suffix = Path(target).suffix
    return f"{OUTSIDE}{target}" + (".md" if suffix in LANGUAGES else "")


def _file(config, target: str) -> File:
    uri, path = site_uri(target), ROOT / target
    if path.is_dir() and uri.endswith("README.md"):
        path = path / "README.md"
    own = dict(inclusion=InclusionLevel.NOT_IN_NAV)
    if path.is_dir():
        names = sorted(
            entry.name + "/" * entry.is_dir() for entry in path.iterdir() if not entry.name.startswith(("_", "."))
        )
        text = "\n".join([f"# {target}/", "", *(f"- `{name}`" for name in names), ""])
        return File.generated(config, uri, content=HIDDEN + text, **own)
    if path.suffix == ".md":
        return File.generated(config, uri, content=HIDDEN + path.read_text(encoding="utf-8"), **own)
    if path.suffix in LANGUAGES:
        text = path.read_text(encoding="utf-8")
        block = f"# {target}\n\n~~~~{LANGUAGES[path.suffix]}\n{text.rstrip()}\n~~~~\n"
        return File.generated(config, uri, content=HIDDEN + block, **own)
    return File.generated(config, uri, abs_src_path=str(path), **own)
