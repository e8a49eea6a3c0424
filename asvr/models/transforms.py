"""Model transforms: what is done to a model behind its construction, in the order of ``model_transforms``.

A transform is a class of `MODEL_TRANSFORMS` whose instances are called with the model, or a function with an argument
``model``. It changes the model in place: it may replace layers, add weights and freeze some. What it adds is trained,
saved and loaded as all else is, under the names of `VLM.components`. A class may have ``merge(model)``, which undoes
the transform and keeps what was learned: a later stage without the transform and saved models need it.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from asvr.base.text import short
from asvr.models.component import apart_of, source_of
from asvr.models.shards import untied_state_dict
from asvr.models.trainable import is_matched, near_names, release
from asvr.registry import MODEL_TRANSFORMS


def transform_and_train(model: nn.Module, configs: Sequence[dict], train: list[str]) -> None:
    """Apply the transforms that the model does not have yet, and give gradients to what ``train`` names of what
    components and transforms did not freeze."""
    if new := configs[len(model.transforms) :]:
        release(model, model.held)
        apply_transforms(model, new)
    model.train_only(train)


def build_transform(config: dict) -> Callable:
    """What is called with the model."""
    options = dict(config)
    kind = MODEL_TRANSFORMS.get(options.pop("type"))
    return kind(**options) if inspect.isclass(kind) else partial(kind, **options)


def apply_transforms(model: nn.Module, configs: Sequence[dict]) -> None:
    """Apply transforms to a model of `VLM` in order. What they add is in no file: checkpoints hold it."""
    for config in configs:
        in_files = {name: _in_files(part) for name, part in model.components().items() if source_of(part) is not None}
        transform = build_transform(config)
        result = transform(model=model) if isinstance(transform, partial) else transform(model)
        if result is not None and result is not model:
            raise ValueError(
                f"model_transforms: {config['type']!r} returned {short(result)}: change the model in place, and return "
                "it or nothing"
            )
        model.transforms.append(transform)
        for name, known in in_files.items():
            part = model.components()[name]
            new = {key for key, value in part.state_dict(keep_vars=True).items() if id(value) not in known}
            part.apart = frozenset(new & untied_state_dict(part).keys())


def _in_files(part: nn.Module) -> dict[int, torch.Tensor]:
    """The tensors of a component that stand in its ``source``, by their ids, which are theirs as long as they live."""
    return {id(value): value for key, value in part.state_dict(keep_vars=True).items() if key not in apart_of(part)}


def merge_transforms(model: nn.Module, keep: int = 0) -> None:
    """Undo all transforms behind the first ``keep``, the last one first. Raises ``ValueError`` where one has no
    ``merge``."""
    require_merge(model, keep)
    for transform in reversed(model.transforms[keep:]):
        before = {name: part.state_dict().keys() for name, part in model.components().items()}
        transform.merge(model)
        model.transforms.pop()
        for name, part in model.components().items():
            if part.state_dict().keys() != before[name]:  # what is merged stands in no file
                part.source, part.apart = None, frozenset()


def require_merge(model: nn.Module, keep: int = 0) -> None:
    """Raise ``ValueError`` where a transform behind the first ``keep`` has no ``merge``."""
    for transform in model.transforms[keep:]:
        if not hasattr(transform, "merge"):
            name = getattr(transform, "func", type(transform)).__name__
            raise ValueError(
                f"model_transforms: {name} has no merge(model), which a later stage without it and saved models need: "
                "write one, or name the transform in the later stage too"
            )


@MODEL_TRANSFORMS.register_module()
class Lora:
    """Low-rank adapters on linear layers, by the ``peft`` package. All other weights of a component that gets some are
    frozen; a stage trains its adapters where ``train`` names the component.

    layers: patterns of names, see `asvr.models.trainable`: ``llm.*.self_attn`` adapts the linear layers of the LLM's
        attention. r: rank. alpha: an adapter's product is multiplied by ``alpha / r``. dropout: of its input, from 0 to
        below 1. Adapters are float32.
    Raises ``ValueError`` where peft is missing, and for patterns that match no linear layer, or one that has adapters
    or shares its weight.
    """

    def __init__(self, *, layers: list[str], r: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        if r < 1 or not 0 <= dropout < 1:
            raise ValueError(f"Lora r={r}, dropout={dropout}: expected r of at least 1, and dropout from 0 to below 1")
        self.layers, self.options = list(layers), dict(r=r, lora_alpha=alpha, lora_dropout=dropout)
        self._frozen: list[tuple[str, list[nn.Parameter]]] = []  # by component, what this froze

    def __call__(self, model: nn.Module) -> None:
        peft = _peft()
        for name, layers in self._found(model, peft).items():
            part = model.components()[name]
            before = {id(p): p for p in part.parameters() if p.requires_grad}
            peft.inject_adapter_in_model(peft.LoraConfig(target_modules=layers, **self.options), part)
            for parameter in part.parameters():
                if parameter.requires_grad and id(parameter) not in before:
                    parameter.data = parameter.data.float()  # small steps are lost in half precision
            self._frozen.append((name, [p for p in before.values() if not p.requires_grad]))

    def merge(self, model: nn.Module) -> None:
        """Add the adapters to the weights of their layers, in the layers' dtype, and take them out."""
        layer_class = _peft().tuners.tuners_utils.BaseTunerLayer
        for name, frozen in self._frozen:
            part = model.components()[name]
            for key, layer in list(part.named_modules()):
                if isinstance(layer, layer_class):
                    layer.merge()
                    parent, _, own = key.rpartition(".")
                    setattr(part.get_submodule(parent), own, layer.get_base_layer())
            del part.peft_config
            for parameter in frozen:
                parameter.requires_grad_(True)
        self._frozen.clear()

    def _found(self, model: nn.Module, peft) -> dict[str, list[str]]:
        """The names of layers by component."""
        parts = {n: part for n, part in model.components().items() if not n.startswith("tokenizer.")}
        linear = {
            f"{name}.{key}": (name, key, layer)
            for name, part in parts.items()
            for key, layer in part.named_modules()
            if key and isinstance(layer, nn.Linear)
        }
        for pattern in self.layers:
            if not any(is_matched(key, [pattern]) for key in linear):
                raise ValueError(f"Lora: layers={pattern!r} matches no linear layer; {near_names(pattern, linear)}")
        found: dict[str, list[str]] = {}
        for full, (name, key, layer) in linear.items():
            if is_matched(full, self.layers):
                if any(
                    other is not layer and getattr(other, "weight", None) is layer.weight for other in model.modules()
                ):
                    raise ValueError(
                        f"Lora: {full} shares its weight with another layer, such as the embeddings: name other layers"
                    )
                found.setdefault(name, []).append(key)
        tuned = peft.tuners.tuners_utils.BaseTunerLayer
        for name in found:
            if any(isinstance(module, tuned) for module in parts[name].modules()):
                raise ValueError(f"Lora: the {name} has adapters already: name all of its layers in one Lora")
        return found


def _peft():
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"model_transforms: Lora needs peft ({error}): pip install 'asvr[lora]'") from error
    return peft
