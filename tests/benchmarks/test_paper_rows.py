"""The page that maps the rows of the paper's tables to configs."""

import shutil
from pathlib import Path

import pytest
from run_helpers import ROOT, call_tool

from asvr.benchmarks.paper import PAPER_ROWS
from asvr.benchmarks.paper_rows import COLUMNS, Row, others, page, paper_rows
from asvr.recipe.config import load_config

CONFIGS = ROOT / "configs" / "paper"

# Of arXiv 2506.09040v2: table, row, average.
PUBLISHED = [
    ("T1", "Discrete input, LLaVA-1.5", 43.3),
    ("T1", "Discrete input, ASVR", 45.3),
    ("T1", "LLaVA-1.5", 46.8),
    ("T1", "ASVR, appearance only", 45.0),
    ("T1", "ASVR, appearance and semantic", 48.5),
    ("T1", "ASVR", 49.8),
    ("T2", "Bunny 2M/2M, LLaVA", 55.1),
    ("T2", "Bunny 2M/2M, ASVR", 55.7),
    ("T2", "OV 558K/4M/4M, LLaVA", 56.2),
    ("T2", "OV 558K/4M/4M, ASVR", 57.9),
    ("T2", "Mistral-7B, LLaVA-1.5", 48.1),
    ("T2", "Mistral-7B, ASVR", 49.4),
    ("T2", "Vicuna-13B, LLaVA-1.5", 49.1),
    ("T2", "Vicuna-13B, ASVR", 52.4),
    ("T3", "1152 px, LLaVA", 55.0),
    ("T3", "1152 px, ASVR", 57.1),
    ("T4", "Next 779K, ROSS on VAE latents", 52.9),
    ("T4", "Next 779K, ROSS on SigLIP features", 53.3),
    ("T4, T9", "Next 779K, SigLIP, ASVR", 55.1),
    ("T9", "Next 779K, SigLIP, LLaVA", 53.8),
    ("T9", "Next 779K, SigLIP2, LLaVA", 55.2),
    ("T9", "Next 779K, SigLIP2, ASVR", 57.4),
    ("T8", "Tokenizer trained on 3M", 48.6),
    ("T8", "Visual loss in instruction tuning only", 45.7),
]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return paper_rows(CONFIGS)


def test_every_row_of_the_paper_has_a_config(rows):
    assert [(row.table, row.row, row.average) for row in rows] == PUBLISHED
    assert len({row.config for row in rows}) == len(PUBLISHED)


def test_the_scores_are_whole(rows):
    for row in rows:
        assert tuple(row.scores) == COLUMNS
        assert row.average == pytest.approx(sum(row.scores.values()) / 14, abs=0.051), row.row
    by_name = {row.row: (*row.scores.values(), row.average) for row in rows if row.table == "T1"}
    for name, figures in PAPER_ROWS.items():  # of the reports of public benchmarks
        assert by_name[name.removesuffix(" (paper)")] == figures


def test_a_baseline_and_its_asvr_differ_in_the_target_alone(rows):
    files = {row.row: row.config for row in rows}
    pairs = [(name, name.replace("LLaVA-1.5", "ASVR").replace("LLaVA", "ASVR")) for name in files if "LLaVA" in name]
    assert len(pairs) == 9
    for names in pairs:
        baseline, own = (load_config(CONFIGS / files[name]).to_dict() for name in names)
        assert baseline["model"].pop("reconstruction") == [] and len(own["model"].pop("reconstruction")) == 1
        del baseline["published"], own["published"]
        assert baseline == own


def test_the_page_is_what_the_configs_say(tmp_path):
    committed = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert committed == page(CONFIGS), "python benchmarks/paper_rows.py writes it anew"
    done = call_tool("benchmarks/paper_rows.py", "--out", tmp_path / "paper.md")
    assert done.returncode == 0 and (tmp_path / "paper.md").read_text(encoding="utf-8") == committed
    assert [file.name for file in others(CONFIGS)] == ["pretrain_only.py"] and "pretrain_only.py" in committed


def test_what_is_no_row_is_described_to_the_end_of_a_sentence():
    """The head of its config may have several lines."""
    line = page(CONFIGS).rstrip().splitlines()[-1]
    assert line.startswith("- [pretrain_only.py]") and line.endswith("does not have this case.")


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path / "configs" / "paper"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Bunny 2M/2M, ASVR", "Bunny 2M/2M, LLaVA", r"bunny2m_llava.py: published: bunny2m_asvr.py is the row"),
        (
            "Bunny 2M/2M, ASVR",
            "Bunny 2M/3M, ASVR",
            r"has no row 'Bunny 2M/3M, ASVR' in 'T2'; did you mean .*2M/2M, ASVR",
        ),
        ("TVQA=60.6, ", "", r"bunny2m_asvr.py: published.scores: expected the columns TVQA, DVQA"),
        ("average=55.7", "average='55.7'", r"published.average='55.7': expected a number"),
        ("published =", "stated =", r"no config in .* is the row Bunny 2M/2M, ASVR \(T2\)"),
    ],
)
def test_a_config_that_names_no_row_of_its_own_is_refused(copy, old, new, message):
    file = copy / "bunny2m_asvr.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        page(copy)


def test_every_visual_tokenizer_can_be_fitted_by_a_config(rows):
    """On the encoder, at the layer, that the row quantises."""
    names = set()
    for file in (row.config for row in rows if row.config is not None):
        model = load_config(CONFIGS / file).model
        for target in model.reconstruction:
            if "tokenizer" in target:
                names.add(name := target.tokenizer.name)
                stem = name.removeprefix("asvr/").replace("-", "_")
                own = load_config(ROOT / "configs" / "tokenizers" / f"{stem}.py")
                encoder = target.tokenizer.get("encoder", model.encoder)
                assert own.name == name
                assert own.tokenizer.to_dict() == dict(
                    type="SemanticTokenizer", depth=8, codebook_size=16384, encoder=encoder.to_dict()
                )
    assert len(names) == 4
