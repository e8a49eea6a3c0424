"""Registries of the library, so that a config names a component by ``type``.

A user's own component needs no change here: decorate it with one of these registries in any file and
name the file in the config's ``custom_imports``. Those that MMEngine's Runner builds from are children of
its own, which lets one parent have one child a scope; the parts of a model have registries of their own.
"""

from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import LOOPS as _LOOPS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODEL_WRAPPERS as _MODEL_WRAPPERS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import Registry

SCOPE = "asvr"


class FullRegistry(Registry):
    """Shows what it has. MMEngine imports a registry's own modules when a name is first looked up: printed, counted or
    listed before that, its registry is empty."""

    def __len__(self) -> int:
        return len(self.module_dict)

    def __repr__(self) -> str:
        self.import_from_location()
        return super().__repr__()

    @property
    def module_dict(self) -> dict:
        self.import_from_location()
        return super().module_dict


def _registry(name: str, location: str, parent: Registry | None = None) -> Registry:
    return FullRegistry(name, parent=parent, scope=SCOPE, locations=[location])


MODELS = _registry("model", "asvr.models.vlm", _MODELS)
ENCODERS = _registry("encoder", "asvr.models.encoders")
PROJECTORS = _registry("projector", "asvr.models.projectors")
VISUAL_TOKENIZERS = _registry("visual tokenizer", "asvr.models.tokenizers")
LLMS = _registry("llm", "asvr.models.llms")
HEADS = _registry("head", "asvr.models.heads")
LOSSES = _registry("loss", "asvr.models.losses")
TEXT_TOKENIZERS = _registry("text tokenizer", "asvr.data.text_tokenizer")
TEMPLATES = _registry("template", "asvr.data.templates")
DATASETS = _registry("dataset", "asvr.data", _DATASETS)
METRICS = _registry("metric", "asvr.evaluation.metrics", _METRICS)
HOOKS = _registry("hook", "asvr.engine.hooks", _HOOKS)
MODEL_WRAPPERS = _registry("way of sharing a step", "asvr.engine.parallel", _MODEL_WRAPPERS)
LOOPS = _registry("loop", "asvr.engine.loops", _LOOPS)
