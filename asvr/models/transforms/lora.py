"""Low-rank adapters (LoRA) as a model transform."""

from torch import nn

from asvr.models.transforms.layers import linear_layers, replace_layer
from asvr.registry import MODEL_TRANSFORMS


@MODEL_TRANSFORMS.register_module()
class Lora:
    """Low-rank adapters (LoRA) on linear layers, from the ``peft`` package.

    All other weights of a component with adapters are frozen. A stage trains the adapters if ``train`` names the
    component. Adapters are in float32.

    layers: patterns of names, see `asvr.models.trainable`. For example, ``llm.*.self_attn`` adapts the linear layers of
        the LLM's attention. r: rank. alpha: an adapter's output is multiplied by ``alpha / r``. dropout: dropout of an
        adapter's input, from 0 to below 1.

    Raises ``ValueError`` if peft is missing, if a pattern matches no linear layer, or if a layer already has adapters
    or shares its weight with another layer.
    """

    def __init__(self, *, layers: list[str], r: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        if r < 1 or not 0 <= dropout < 1:
            raise ValueError(f"Lora r={r}, dropout={dropout}: expected r of at least 1, and dropout from 0 to below 1")
        self.layers, self.options = list(layers), dict(r=r, lora_alpha=alpha, lora_dropout=dropout)
        self.frozen: dict[str, list[str]] = {}  # by component: names, without adapters, of the weights frozen here

    def __call__(self, model: nn.Module) -> None:
        peft = _peft(type(self).__name__)
        for name, layers in self._found(model, peft).items():
            part = model.components()[name]
            before = {key: p for key, p in part.named_parameters() if p.requires_grad}
            known = {id(p) for p in before.values()}
            peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(layers), **self.options), part)
            for parameter in part.parameters():
                if parameter.requires_grad and id(parameter) not in known:
                    parameter.data = parameter.data.float()  # half precision would lose small steps
            self.frozen[name] = [key for key, p in before.items() if not p.requires_grad]

    def merge(self, model: nn.Module) -> None:
        """Add the adapters to the weights of their layers, in the layers' dtype, and remove them."""
        layer_class = _peft(type(self).__name__).tuners.tuners_utils.BaseTunerLayer
        for name, frozen in self.frozen.items():
            part = model.components()[name]
            for key, layer in list(part.named_modules()):
                if isinstance(layer, layer_class):
                    layer.merge()
                    replace_layer(part, key, layer.get_base_layer())
            del part.peft_config
            for key in frozen:
                part.get_parameter(key).requires_grad_(True)
        self.frozen.clear()

    def _found(self, model: nn.Module, peft) -> dict[str, dict[str, nn.Linear]]:
        """Return the layers to adapt, see `linear_layers`. Raises ``ValueError`` for layers that cannot be adapted."""
        found = linear_layers(model, self.layers, type(self).__name__)
        tuned, parts = peft.tuners.tuners_utils.BaseTunerLayer, model.components()
        for name, layers in found.items():
            for key, layer in layers.items():
                others = (other for other in model.modules() if other is not layer)
                if any(getattr(other, "weight", None) is layer.weight for other in others):
                    raise ValueError(
                        f"{type(self).__name__}: {name}.{key} shares its weight with another layer, such as the "
                        "embeddings: name other layers"
                    )
            if any(isinstance(module, tuned) for module in parts[name].modules()):
                raise ValueError(
                    f"{type(self).__name__}: the {name} already has adapters: name all of its layers in one transform"
                )
        return found


def _peft(name: str):
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"model_transforms: {name} needs peft ({error}): pip install 'asvr[lora]'") from error
    return peft
