"""docs/reference/components.md: every registered component with its fields."""

import re
from pathlib import Path

from _pages.tables import literal, page, slug, table
from asvr import registry as registries
from asvr.recipe.catalog import ComponentField, ComponentInfo, component_kinds, list_components
from asvr.registry import HOOKS, LOOPS, OPTIMIZERS, PARAM_SCHEDULERS, VISBACKENDS, FullRegistry

CONTRACTS = Path(__file__).parents[1] / "components.md"

INTRO = """This page lists every component of the library, by registry. A config names a component by `type`. Its fields
are the arguments of the constructor. The library gives some arguments itself, and a config does not have them.
`asvr list` prints the same in a terminal.

The contract of each registry, for a component of your own, is in [components.md](../components.md)."""

INHERITING = (OPTIMIZERS, PARAM_SCHEDULERS, HOOKS, VISBACKENDS)
INHERITS = "What MMEngine has registered is found too: `asvr list {kind}` counts it."
OWN = "These are the library's own: it adds them itself, and a config does not name them."


def components_page() -> str:
    blocks = []
    for kind, registry in component_kinds().items():
        # Only the library's own: a process may have registered others.
        found = [info for info in list_components(kind) if info.module.startswith("asvr.")]
        blocks += _registry(kind, registry, found)
    return page("# Components reference", INTRO, *blocks)


def _registry(kind: str, registry: FullRegistry, found: list[ComponentInfo]) -> list[str]:
    name = next(name for name, value in vars(registries).items() if value is registry)
    anchor = next(slug(title) for title in _titles() if f"`{name}`" in title)
    words = [f"Contract: {registry.contract}. [More](../components.md#{anchor})."]
    words += [INHERITS.format(kind=kind)] if registry in INHERITING else []
    words += [OWN] if registry in (HOOKS, LOOPS) and found else []
    return [f"## `{name}`", " ".join(words), *(block for info in found for block in _component(info))]


def _titles() -> list[str]:
    return re.findall(r"^## (.+)$", CONTRACTS.read_text(encoding="utf-8"), re.M)


def _component(info: ComponentInfo) -> list[str]:
    blocks = [f"### `{info.name}`", info.summary.replace("``", "`") or "No description."]
    own = [field for field in info.fields if not field.injected]
    given = [f"`{field.name}`" for field in info.fields if field.injected]
    if own:
        blocks.append(table(("field", "type", "default", "what it is"), map(_field, own)))
    notes = [f"The library gives {', '.join(given)}."] if given else []
    notes += ["It takes further fields."] if info.takes_any and own else []
    return [*blocks, *([" ".join(notes)] if notes else [])]


def _field(field: ComponentField) -> list[str]:
    default = "required" if field.required else f"`{literal(field.default)}`"
    return [f"`{field.name}`", field.type.replace(" | ", " or "), default, field.description]
