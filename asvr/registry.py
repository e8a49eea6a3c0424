"""Registries of the library, children of MMEngine's, so that a config names a component by ``type``.

A user's own component needs no change here: decorate it with one of these registries in any file and
name the file in the config's ``custom_imports``.
"""

import importlib

from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import LOOPS as _LOOPS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import Registry

SCOPE = "asvr"


def _child(name: str, parent: Registry, location: str) -> Registry:
    return Registry(name, parent=parent, scope=SCOPE, locations=[location])


MODELS = _child("model", _MODELS, "asvr.models.vlm")
ENCODERS = _child("encoder", _MODELS, "asvr.models.encoders")
PROJECTORS = _child("projector", _MODELS, "asvr.models.projectors")
VISUAL_TOKENIZERS = _child("visual tokenizer", _MODELS, "asvr.models.tokenizers")
LLMS = _child("llm", _MODELS, "asvr.models.llms")
HEADS = _child("head", _MODELS, "asvr.models.heads")
LOSSES = _child("loss", _MODELS, "asvr.models.losses")
TEXT_TOKENIZERS = Registry("text tokenizer", scope=SCOPE, locations=["asvr.data.text_tokenizer"])
TEMPLATES = Registry("template", scope=SCOPE, locations=["asvr.data.templates"])
DATASETS = _child("dataset", _DATASETS, "asvr.data")
HOOKS = _child("hook", _HOOKS, "asvr.engine.hooks")
LOOPS = _child("loop", _LOOPS, "asvr.engine.loops")

ALL = (MODELS, ENCODERS, PROJECTORS, VISUAL_TOKENIZERS, LLMS, HEADS, LOSSES, TEXT_TOKENIZERS, TEMPLATES, DATASETS, HOOKS, LOOPS)


def register_all() -> None:
    """Import every module that registers a component of this library."""
    for registry in ALL:
        for location in registry._locations:
            importlib.import_module(location)
