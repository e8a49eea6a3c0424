"""Files beside the code that say the same thing in two places: versions, licences, extras, links."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from run_helpers import ROOT

import asvr

SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
EMOJI = ROOT / "asvr" / "data" / "scenes" / "emoji"
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "docs/versions.md", "docs/guides/demo.md"]


def test_hooks_use_the_versions_of_the_extra_dev():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    wanted = [requirement for hook in hooks for requirement in hook["additional_dependencies"]]
    assert {re.match(r"[\w-]+", one)[0] for one in wanted} == {"ruff", "import-linter", "mypy"}
    assert [one for one in wanted if f'"{one}"' not in SETUP] == []


def test_what_is_type_checked_is_there():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert [file for file in settings["files"] if not (ROOT / file).is_file()] == []
    assert (ROOT / "asvr" / "py.typed").is_file() and '"py.typed"' in SETUP


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == asvr.__version__
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert sections[:2] == ["Unreleased", asvr.__version__]


def test_every_drawing_has_a_licence():
    table = (EMOJI / "README.md").read_text(encoding="utf-8")
    licences = dict(re.findall(r"^\| `(.+?)` .*\[(LICENSE-.+?)\]", table, re.M))
    artwork = {file.name for file in EMOJI.iterdir() if file.suffix in (".png", ".json")}
    assert licences.keys() == artwork
    assert set(licences.values()) == {file.name for file in EMOJI.glob("LICENSE-*.txt")}
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert [name for name in artwork if name not in notice] == []


def test_the_image_installs_extras_that_exist():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = re.search(r"^ARG EXTRAS=(.+)$", dockerfile, re.M)[1].split(",")
    assert [extra for extra in extras if f'"{extra}": ' not in SETUP] == []
    copied = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"asvr", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= set(copied)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert local and [link for link in local if not Path(file.parent, link).exists()] == []
