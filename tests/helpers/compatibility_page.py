"""The text of docs/compatibility.md, from the cells of the compatibility matrix and their outcomes."""

from collections.abc import Iterable

from compatibility_cells import AXES, DEFAULTS, pairs
from compatibility_plan import unusual
from compatibility_run import WORKS

from asvr.base.text import table

COMMAND = "python benchmarks/compatibility.py"
TEST = "tests/test_compatibility.py"
LARGE = dict(encoder="Encoder", llm="LLM", target="Target")
SMALL = [axis for axis in AXES if axis not in LARGE]
HEAD = f"""# What goes with what

This page shows which parts work together. A cell is a tiny model. It is built, trained for two steps with the code of
`asvr train`, saved, loaded and asked a question. It has one value of each axis below. Each pair of values of two
axes is in a cell that works, or is refused. Every combination in a config of this repository is a cell that works. This
page does not test larger models, the quality of training, or combinations of three values that no cell has.

`{COMMAND}` makes the cells, runs them and writes this page and
[compatibility.json](compatibility.json), which has all values of every cell. `pytest {TEST}` runs every
cell again and compares: cell 12 is `test_a_cell[12]` there. DDP and FSDP2 run with one process here. Several processes
are tested in tests/engine/test_parallel.py and tests/engine/test_sharded.py.

A number in a table is the number of a cell that works. R12 means that cell 12 is refused. [Refusals](#refusals) has its
message.

## Axes

The first value is the default. A refusal names only values that are not the default.

"""
OTHERS = """
- Encoders: `timm` is a convolutional network, `pair` SigLIP and DINOv2 side by side, `s2` SigLIP at two scales, `codes`
  the codes of SigLIP's features (`CodeEncoder`), `tiles` SigLIP with the layout `AnyRes`, `own` the encoder of
  examples/my_components.py. SigLIP2 with one size has SigLIP's classes. DINOv2 has registers. DINOv3, AIMv2, InternViT
  and C-RADIO are tested in tests/models/encoders/test_encoder_families.py.
- LLMs have the special parts of the real ones (sliding windows, soft caps, experts). More families are tested in
  tests/models/test_llm_families.py. `llama` is Llama 2 and Vicuna too; `llama, tied` is SmolLM2.
- Targets: `codes` are codes of the model's encoder. `denoising` has VAE latents. ROSS on an encoder's features differs
  from it only in its teacher, so it has no value of its own. `own` is the target of examples/feature_target.py.
"""


def page(found: list[tuple[dict, str]], configs: dict[frozenset, list[str]]) -> str:
    """The whole text. found: cells and outcomes, in the order of their numbers. configs: see `configs_by_cell`."""
    marks = _marks(found)
    refused = [(cell, said) for cell, said in found if said != WORKS]
    usual = {axis: [(axis, value) for value in AXES[axis]] for axis in LARGE}
    rest = [(axis, value) for axis in SMALL for value in AXES[axis][1:]]
    grids = [
        ("Encoder and LLM", usual["encoder"], usual["llm"]),
        ("Target and encoder", usual["target"], usual["encoder"]),
        ("Target and LLM", usual["target"], usual["llm"]),
        *((f"{title} and training, export", usual[axis], rest) for axis, title in LARGE.items()),
        ("Training and export", rest, rest),
    ]
    axes = [[axis, ", ".join(f"`{value}`" for value in values)] for axis, values in AXES.items()]
    parts = [HEAD, table(["axis", "values"], axes), OTHERS]
    parts.append(f"\n{len(found)} cells: {len(found) - len(refused)} work, {len(refused)} are refused.\n")
    for title, rows, columns in grids:
        parts += [f"\n## {title}\n\n", _grid(rows, columns, marks)]
    parts += ["\n## Refusals\n\n", _refusals(found)]
    parts += ["\n## Configs\n\n", _configs(found, configs)]
    return "".join(parts)


def _marks(found: list[tuple[dict, str]]) -> dict[frozenset, str]:
    """For each pair of values: a cell that works, or a refusal."""
    marks: dict[frozenset, str] = {}
    for number, (cell, said) in enumerate(found):
        if said == WORKS:
            marks |= {pair: str(number) for pair in pairs(cell) if pair not in marks}
    for number, (cell, said) in enumerate(found):
        if said != WORKS:
            marks |= {pair: f"R{number}" for pair in refused_pairs(cell) if pair not in marks}
    return marks


def refused_pairs(cell: dict[str, str]) -> Iterable[frozenset]:
    """The pairs that a refused cell refuses. If it differs from the defaults in two values, it is this pair. If it
    differs in one value, it is this value with each default."""
    own = unusual(cell)
    if len(own) == 2:
        return [own]
    return [pair for pair in pairs(cell) if own <= pair] if len(own) == 1 else []


def _grid(rows: list[tuple], columns: list[tuple], marks: dict[frozenset, str]) -> str:
    lines = [
        [row[1], *("" if row[0] == column[0] else marks[frozenset([row, column])] for column in columns)]
        for row in rows
    ]
    return table(["", *(value for _, value in columns)], lines)


def _refusals(found: list[tuple[dict, str]]) -> str:
    lines = []
    for number, (cell, said) in enumerate(found):
        if said != WORKS:
            together = "; ".join(f"{axis}: {cell[axis]}" for axis in AXES if cell[axis] != DEFAULTS[axis])
            lines.append([f"R{number}", together, said.replace("|", "\\|")])
    return table(["", "together", "message"], lines)


def _configs(found: list[tuple[dict, str]], configs: dict[frozenset, list[str]]) -> str:
    numbers = {frozenset(cell.items()): number for number, (cell, _) in enumerate(found)}
    lines = sorted((numbers[cell], ", ".join(names)) for cell, names in configs.items())
    return table(["cell", "configs (stages)"], [[str(number), names] for number, names in lines])
