"""The page ``docs/paper.md``: rows of the paper's tables (arXiv 2506.09040v2), each with its config.

A config names its row in its section ``published``.
"""

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from asvr.base.text import nearest, table
from asvr.benchmarks.paper import AVERAGE, PAPER
from asvr.recipe.config import PUBLISHED, load_config
from asvr.recipe.validate import check_config

COLUMNS = tuple(benchmark.column for benchmark in PAPER)
COMMAND = "python benchmarks/paper_rows.py"

# In the order of the page. A baseline comes before the rows that are compared with it.
ROWS = (
    ("T1", "Discrete input, LLaVA-1.5"),
    ("T1", "Discrete input, ASVR"),
    ("T1", "LLaVA-1.5"),
    ("T1", "ASVR, appearance only"),
    ("T1", "ASVR, appearance and semantic"),
    ("T1", "ASVR"),
    ("T2", "Bunny 2M/2M, LLaVA"),
    ("T2", "Bunny 2M/2M, ASVR"),
    ("T2", "OV 558K/4M/4M, LLaVA"),
    ("T2", "OV 558K/4M/4M, ASVR"),
    ("T2", "Mistral-7B, LLaVA-1.5"),
    ("T2", "Mistral-7B, ASVR"),
    ("T2", "Vicuna-13B, LLaVA-1.5"),
    ("T2", "Vicuna-13B, ASVR"),
    ("T3", "1152 px, LLaVA"),
    ("T3", "1152 px, ASVR"),
    ("T4", "Next 779K, ROSS on VAE latents"),
    ("T4", "Next 779K, ROSS on SigLIP features"),
    ("T4, T9", "Next 779K, SigLIP, ASVR"),
    ("T9", "Next 779K, SigLIP, LLaVA"),
    ("T9", "Next 779K, SigLIP2, LLaVA"),
    ("T9", "Next 779K, SigLIP2, ASVR"),
    ("T8", "Tokenizer trained on 3M"),
    ("T8", "Visual loss in instruction tuning only"),
)

HEAD = f"""# The paper's tables, row by row

This page lists every row of the tables of the ASVR paper ([arXiv 2506.09040v2](https://arxiv.org/html/2506.09040v2)),
the config that trains it, and the numbers that the paper reports. None of them was measured with this library.
`{COMMAND}` writes this page from the section `published` of the configs.

"""
COMMON = """All rows differ from the paper in these points:

- The paper's visual tokenizer is DualToken, which fine-tunes its own vision tower. Its weights are on Google Drive.
  They were not available here. The configs use a residual quantisation of the frozen encoder's features instead.
  `asvr train-tokenizer` fits it (`configs/tokenizers/`). An imported DualToken tokenizer can replace it.
- Hidden states predict the codes of the next visual token (`shift=1`, the paper's equation 2). The released code has no
  shift and another head: [asvr_vicuna7b_released.py](../configs/asvr_vicuna7b_released.py).
- The paper states no learning rates and no batch sizes. All rows have those of the released scripts.
- The paper evaluates with Cambrian-1's code. This library evaluates with lmms-eval (`asvr evaluate --tasks paper`).
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of one of the paper's tables. scores: by column. config: the name of a file in the folder."""

    table: str
    row: str
    average: float
    scores: dict[str, float]
    config: str
    differs: tuple[str, ...] = ()


def paper_rows(configs: Path) -> list[Row]:
    """Every row of `ROWS`. configs: the folder ``configs/paper``. Files that begin with "_" are ignored.

    Raises ``ValueError`` if a config names an unknown row, a row that another config has, or other columns than the
    paper's, and if a row has no config.
    """
    found: dict[tuple[str, str], Row] = {}
    for file in _files(configs):
        config = load_config(file)
        if (published := config.get(PUBLISHED)) is None:
            continue
        check_config(config)
        own = Row(config=file.name, **dict(published.to_dict(), differs=tuple(published.differs)))
        key = (own.table, own.row)
        if key not in ROWS:
            rows = nearest(str(key), map(str, ROWS))
            raise ValueError(f"{file}: published: the paper has no row {own.row!r} in {own.table!r}; {rows}")
        if key in found:
            raise ValueError(f"{file}: published: {found[key].config} is the row {own.row!r} of {own.table} already")
        if tuple(own.scores) != COLUMNS:
            raise ValueError(f"{file}: published.scores: expected the columns {', '.join(COLUMNS)}, in this order")
        found[key] = own
    if missing := [f"{row} ({of})" for of, row in ROWS if (of, row) not in found]:
        raise ValueError(f"no config in {configs} is the row {'; '.join(missing)}")
    return [found[key] for key in ROWS]


def others(configs: Path) -> list[Path]:
    """The configs in the folder that are not a row of the paper."""
    return [file for file in _files(configs) if PUBLISHED not in load_config(file)]


def page(configs: Path) -> str:
    """The whole text of ``docs/paper.md``. Raises ``ValueError`` as `paper_rows` does, and for a wrong config."""
    rows = paper_rows(configs)
    notes = list(dict.fromkeys(note for row in rows for note in row.differs))
    trained = [[row.table, row.row, *_config(row.config), f"{row.average}", _marks(row, notes)] for row in rows]
    scores = [[row.table, row.row, *(f"{value}" for value in row.scores.values()), f"{row.average}"] for row in rows]
    parts = [
        HEAD,
        table(["paper's table", "row", "config", "command", "published average", "differs"], trained),
        "\n## Published scores\n\n",
        table(["paper's table", "row", *COLUMNS, AVERAGE], scores),
        "\n## What differs from the paper\n\n",
        COMMON,
        "\nSingle rows differ in these points (the numbers in the table):\n\n",
        *(f"{i}. {note}\n" for i, note in enumerate(notes, 1)),
    ]
    if extra := others(configs):
        parts += [
            "\n## Not in the paper\n\n",
            *(f"- {' '.join(_config(file.name))}: {_title(file)}\n" for file in extra),
        ]
    return "".join(parts)


def _files(configs: Path) -> list[Path]:
    return sorted(configs.glob("[!_]*.py"))


def _config(name: str) -> tuple[str, str]:
    """A link to the config, and its command."""
    return f"[{name}](../configs/paper/{name})", f"`asvr train paper/{name.removesuffix('.py')}`"


def _marks(row: Row, notes: list[str]) -> str:
    return ", ".join(str(notes.index(note) + 1) for note in row.differs)


def _title(file: Path) -> str:
    """The text of a config's header, up to the command."""
    lines = takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    said = takewhile(lambda line: not line.startswith("# asvr "), lines)
    return " ".join(line.removeprefix("# ") for line in said)
