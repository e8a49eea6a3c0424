"""The catalog: every registered component with its fields, as records."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from mmengine.registry import Registry

from asvr import registry as registries
from asvr.base.recipes import matches
from asvr.base.text import first_sentence, nearest
from asvr.recipe.components import INJECTED
from asvr.recipe.signatures import constructor_parameters
from asvr.registry import FullRegistry

REQUIRED = inspect.Parameter.empty  # `ComponentField.default` of a field that has none


@dataclass(frozen=True, kw_only=True)
class ComponentField:
    """An argument of a component's constructor.

    type: its annotation as text; "" if there is none. default: its default value; `REQUIRED` if there is none.
    injected: whether the library gives it, so that a config leaves it out. description: its text in the docstring, or
    "".
    """

    name: str
    type: str
    default: Any
    injected: bool
    description: str

    @property
    def required(self) -> bool:
        """Whether a config must give it."""
        return self.default is REQUIRED and not self.injected


@dataclass(frozen=True, kw_only=True)
class ComponentInfo:
    """A registered component.

    kind: one of `component_kinds`. name: its ``type`` in a config. summary: one line. module: where its class is.
    takes_any: whether it also takes fields that are not listed (it and its base classes have ``**kwargs``).
    """

    kind: str
    name: str
    summary: str
    module: str
    fields: tuple[ComponentField, ...]
    takes_any: bool


def component_kinds() -> dict[str, FullRegistry]:
    """The kinds of components and their registries: ``encoder``, ``projector``, ``visual_tokenizer`` ..."""
    found = {name: value for name, value in vars(registries).items() if isinstance(value, FullRegistry)}
    return {_singular(name.lower()): registry for name, registry in found.items()}


def find_kind(given: str) -> str:
    """The kind of component that a word names.

    The word may be singular or plural, have ``-``, ``_`` or spaces, or be a registry's own name. Raises ``ValueError``
    with the nearest kinds.
    """
    kinds = component_kinds()
    word = "_".join(given.lower().replace("-", " ").replace("_", " ").split())
    own = {registry.name.replace(" ", "_"): kind for kind, registry in kinds.items()}
    for form in (word, _singular(word)):
        if form in kinds or form in own:
            return form if form in kinds else own[form]
    raise ValueError(f"there is no kind of component {given!r}; {nearest(_singular(word), kinds)}")


def list_components(
    kind: str | None = None, pattern: str | None = None, *, inherited: bool = False
) -> list[ComponentInfo]:
    """List the registered components, ordered by kind and name.

    Your own components are listed once their module is imported. kind: only this kind, singular or plural
    (``"encoder"``, ``"visual tokenizers"``). pattern: a part of the name, or a shell pattern (``"*Loss"``). inherited:
    also list the components of MMEngine's registries, such as torch's optimisers.

    Raises ``ValueError`` for an unknown kind, with the nearest ones.
    """
    kinds = component_kinds()
    chosen = kinds if kind is None else {(name := find_kind(kind)): kinds[name]}
    found = []
    for name, registry in chosen.items():
        members = _members(registry) if inherited else dict(registry.module_dict)
        found += [describe(name, key, members[key]) for key in sorted(members, key=str.lower) if matches(key, pattern)]
    return found


def inherited_count(kind: str) -> int:
    """The number of components that a kind inherits from MMEngine's registries."""
    registry = component_kinds()[kind]
    return len(_members(registry)) - len(registry.module_dict)


def describe(kind: str, name: str, component: Any) -> ComponentInfo:
    """The record of one component. component: its class, or a function."""
    given = INJECTED.get(component_kinds()[kind], set())
    parameters, takes_any = constructor_parameters(component)
    said = _descriptions(component, set(parameters))
    return ComponentInfo(
        kind=kind,
        name=name,
        summary=first_sentence(_doc(component)),
        module=getattr(component, "__module__", ""),
        fields=tuple(
            ComponentField(
                name=field,
                type=_type_text(parameter.annotation),
                default=parameter.default,
                injected=field in given,
                description=said.get(field, ""),
            )
            for field, parameter in parameters.items()
        ),
        takes_any=takes_any,
    )


def _members(registry: Registry) -> dict[str, Any]:
    """The components of a registry and its parents. A registry's own component replaces a parent's of the same name."""
    found: dict[str, Any] = {}
    while registry is not None:
        registry.import_from_location()
        found = dict(registry.module_dict) | found
        registry = registry.parent
    return found


def _singular(word: str) -> str:
    return "loss" if word in ("loss", "losses") else word.removesuffix("s")


def _type_text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _doc(component: Any) -> str:
    """The docstring that a component was written with. (Python gives a dataclass without one its signature.)"""
    doc = inspect.cleandoc(getattr(component, "__doc__", None) or "")
    return "" if doc.startswith(f"{getattr(component, '__name__', '')}(") else doc


def _descriptions(component: Any, fields: set[str]) -> dict[str, str]:
    """The docstrings' texts about fields: ``name: text`` at the start of a line or after a sentence.

    The text of a class goes before those of its base classes."""
    found: dict[str, str] = {}
    names = "|".join(sorted(map(re.escape, fields), key=len, reverse=True))
    mark = re.compile(rf"(?:^|(?<=[.;?] ))((?:{names})(?:, (?:{names}))*): ") if names else None
    for kind in component.__mro__ if inspect.isclass(component) else [component]:
        for text in (_doc(kind), inspect.cleandoc(getattr(vars(kind).get("__init__"), "__doc__", None) or "")):
            for paragraph in _items(text) if mark else []:
                parts = mark.split(paragraph)
                for joined, words in zip(parts[1::2], parts[2::2], strict=True):
                    for name in joined.split(", "):
                        found.setdefault(name, words.strip().replace("``", "`"))
    return found


def _items(text: str) -> list[str]:
    """The paragraphs of a docstring, each on one line. A line that starts with ``name:`` also starts a paragraph."""
    items: list[str] = []
    for line in text.splitlines():
        begins = not line.strip() or re.match(r"[a-z_]\w*(, [a-z_]\w*)*: ", line) or not items or items[-1] == ""
        if begins:
            items.append(line.strip())
        else:
            items[-1] += " " + line.strip()
    return items
