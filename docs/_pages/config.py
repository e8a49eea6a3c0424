"""docs/reference/config.md: every section of a config and every plain field in it."""

from _pages.tables import literal, page, table
from asvr.recipe.entries import EMA, GROUP, PROFILE, SOURCE, TARGET
from asvr.recipe.fields import Field
from asvr.recipe.schema import SECTIONS
from asvr.recipe.sections import SECTION_DOCS, STAGE_DOCS
from asvr.recipe.validate import BY_STAGE, REQUIRED

INTRO = """A config is a Python file of plain dicts that MMEngine reads. This page has every section and every
plain field of it. A dict with `type` is a component: its fields are in [components.md](components.md).
[configs/README.md](../../configs/README.md) explains how configs inherit from each other and has
examples.

A section that can be set by stage may also be in an entry of [`stages`](#stages). There it changes
the section for that stage only: `stages = dict(pretrain=dict(train=["projector"],
optim=dict(lr=1e-3)))`."""

OPTIM = """Any other argument of the optimiser's constructor is a field of this section too, such as `eps` of
`AdamW`. The fields of the library's own optimiser, `Muon`, are in
[components.md](components.md#optimizers)."""

TARGET_DOC = """One entry of the list `model.reconstruction`. These are the fields of a `CodeTarget`, the default.
Another `type` has the fields of its constructor, see [components.md](components.md#targets)."""


def config_page() -> str:
    return page(
        "# Configuration reference",
        INTRO,
        "## Sections",
        table(("section", "holds", "required", "by stage", "what it is for"), map(_overview, SECTION_DOCS)),
        *(block for name in ("data", "optim", "schedule", "runtime") for block in _section(name)),
        *(block for name in ("evaluation", "validation") for block in _section(name)),
        "## `model`",
        "The parts of a `VLM` and their fields are in [components.md](components.md#models).",
        "### `model.reconstruction`",
        TARGET_DOC,
        _fields(TARGET),
        "## `stages`",
        SECTION_DOCS["stages"].doc,
        table(("field", "holds", "what it does"), ([f"`{name}`", s.holds, s.doc] for name, s in STAGE_DOCS.items())),
        *_section("published"),
    )


def _overview(name: str) -> list[str]:
    section = SECTION_DOCS[name]
    inside = {*SECTIONS, "stages", "model"}
    shown = f"[`{name}`](#{name})" if name in inside else f"`{name}`"
    by_stage = "" if name == "stages" else "yes" if name in BY_STAGE else "no"
    return [shown, section.holds, "yes" if name in REQUIRED else "no", by_stage, section.doc]


def _section(name: str) -> list[str]:
    by_stage = "It can be set by stage." if name in BY_STAGE else "It is the same for all stages."
    blocks = [f"## `{name}`", f"{SECTION_DOCS[name].doc} {by_stage}", _fields(SECTIONS[name])]
    if name == "optim":
        blocks += [OPTIM, "### `optim.groups`", "Settings of one component: of `dict(llm=dict(...))` the inner dict."]
        blocks += [_fields(GROUP)]
    if name == "runtime":
        blocks += ["### `runtime.ema`", "The average takes 4 bytes for each trained parameter.", _fields(EMA)]
        blocks += ["### `runtime.profile`", "Profiled steps are slower. The losses do not change.", _fields(PROFILE)]
    if name == "data":
        blocks += ["### Sources of a `Mixture`", "Each entry of its `sources`.", _fields(SOURCE)]
    return blocks


def _fields(fields: dict[str, Field]) -> str:
    rows = ([f"`{name}`", field.expected, _default(field), field.doc] for name, field in fields.items())
    return table(("field", "value", "default", "what it does"), rows)


def _default(field: Field) -> str:
    return "required" if field.required else f"`{literal(field.default)}`"
