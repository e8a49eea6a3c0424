"""Reads ``asvr.json``, the description of a saved model.

The file may come from anyone. So it can only name components that are registered here. Its own modules are imported
only if the user agrees to run them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from asvr.base.text import nearest, short
from asvr.data.transforms import ASPECTS
from asvr.recipe.components import check_component, find
from asvr.recipe.config import MODEL_FILE, import_custom
from asvr.registry import (
    ENCODERS,
    HEADS,
    LAYOUTS,
    LLMS,
    LOSSES,
    MODELS,
    PROJECTORS,
    TARGETS,
    TEMPLATES,
    VISUAL_TOKENIZERS,
)

FORMAT = 1
FIELDS = dict(model=dict, template=(str, dict), image_aspect=str, sha256=dict)
PARTS = (MODELS, ENCODERS, LAYOUTS, PROJECTORS, VISUAL_TOKENIZERS, LLMS, TARGETS, HEADS, LOSSES, TEMPLATES)
# Fields that hold settings, not components, even if there is a `type` in them.
SETTINGS = ("arch", "projection")
# Fields of an `arch` that make transformers fetch code.
FETCHING = ("attn_implementation", "_attn_implementation", "experts_implementation", "auto_map")


def read_description(folder: Path) -> dict:
    """Read ``asvr.json`` of a folder. Raises ``ValueError`` if it is missing, damaged or newer than this library."""
    file = folder / MODEL_FILE
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    if not isinstance(description, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(description).__name__}")
    if description.get("format") != FORMAT:
        raise ValueError(f"{file}: its format is {description.get('format')!r}, but this library reads {FORMAT}")
    wrong = [name for name, kind in FIELDS.items() if not isinstance(description.get(name), kind)]
    if wrong:
        raise ValueError(f"{file}: {', '.join(wrong)}: missing or not what `save_pretrained` writes")
    return description


def import_modules(file: Path, custom_imports: dict | None, *, trust: bool) -> None:
    """Import the modules that register a model's own components.

    Raises ``ValueError`` if this would run code that the user has not imported and has not agreed to.
    """
    if not custom_imports:
        return
    modules = custom_imports.get("imports") if isinstance(custom_imports, dict) else None
    modules = [modules] if isinstance(modules, str) else modules
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise ValueError(f"{file}: custom_imports: expected an object with a list of modules, `imports`")
    new = [module for module in modules if module not in sys.modules]
    if new and not trust:
        raise ValueError(
            f"{file}: its components are in {', '.join(new)}, and an import runs the code there: import it yourself "
            "first, or agree with asvr.load(..., trust_custom_imports=True) (commands: --trust-custom-imports)"
        )
    import_custom(custom_imports)


def check_description(file: Path, description: dict) -> None:
    """Raise ``ValueError`` with all problems of a description. It is called before anything is built from it."""
    known = {name for registry in PARTS for name in registry.module_dict}
    described = {name: description[name] for name in ("model", "template")}
    # MMEngine would import a type that is not registered. So this check comes before anything looks up a type.
    problems = [f"{where}={value!r}: {why}" for where, value, why in _forbidden(described, "", known)]
    if not problems:
        problems = check_component("model", _without_archs(description["model"]), MODELS)
        problems += check_prompt(description["template"], description["image_aspect"])
        problems += _chat_template_in_a_file(description["template"])
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")


def _chat_template_in_a_file(template: Any) -> list[str]:
    """The problem of a chat template that names a file: a model's folder must hold the template's text itself."""
    given = template.get("chat_template") if isinstance(template, dict) else None
    if given is None or "{" in str(given):
        return []
    return [f"template.chat_template={short(given)}: expected the Jinja template itself, not the name of its file"]


def _forbidden(value: Any, where: str, known: set[str], settings: bool = False) -> Iterator[tuple[str, Any, str]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _forbidden(item, f"{where}[{i}]", known, settings)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "type" and not settings and item not in known:
                yield f"{where}.type"[1:], item, "no component of this name is registered"
            elif key in FETCHING and item is not None:
                yield f"{where}.{key}"[1:], item, "not allowed in a model's folder, since it could fetch and run code"
            yield from _forbidden(item, f"{where}.{key}", known, settings or key in SETTINGS)


def _without_archs(value: Any) -> Any:
    """The value without each ``arch``. Fields of transformers' configurations differ between its versions, and the
    strict loading of weights finds a wrong one."""
    if isinstance(value, list):
        return [_without_archs(item) for item in value]
    return {k: _without_archs(v) for k, v in value.items() if k != "arch"} if isinstance(value, dict) else value


def check_prompt(template: Any, image_aspect: Any, prefix: str = "") -> list[str]:
    """The problems of a template and an ``image_aspect`` that do not come from a config file. prefix: a text before
    their names."""
    problems = []
    if isinstance(template, dict):
        problems += check_component(f"{prefix}template", template, TEMPLATES)
    elif find(TEMPLATES, template) is None:
        names = nearest(template, TEMPLATES.module_dict)
        problems.append(f"{prefix}template {template!r}: no such template; {names}")
    if image_aspect not in ASPECTS:
        problems.append(f"{prefix}image_aspect {image_aspect!r}: expected one of {', '.join(ASPECTS)}")
    return problems


def build_described(config: dict, source: Path) -> nn.Module:
    """Build the `VLM` of a config that was read from ``source``. Raises ``ValueError`` if its sizes do not fit."""
    try:
        return MODELS.build(config)
    except (StrictDataclassError, TypeError, KeyError, IndexError, RuntimeError, ArithmeticError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{source}: no model can be built with these sizes and settings: {why}") from error
