"""Which rate and which weight decay each trained parameter has."""

from torch import nn

from asvr.models.encoders.composite import CompositeEncoder
from asvr.models.tree import TRAINED_WITH

IN_BLOCK = "in_block"  # key of a group: whether it holds matrices of transformer blocks


def parameter_groups(model: nn.Module, config: dict, *, split_blocks: bool = False) -> list[dict]:
    """Groups of the trained parameters, for an optimiser of torch: ``params``, ``lr``, ``weight_decay``.

    config: ``optim`` of the config. Its ``weight_decay`` applies to matrices alone, not to biases and norms.
    ``lr_scale`` multiplies the rate of a component, and so does ``groups``: component -> ``lr_scale``, ``weight_decay``
    (its own), ``layer_decay``, ``muon``. Losses go with the heads. split_blocks: set matrices of transformer blocks
    apart, those of components with ``muon=False`` excepted, and mark each group by `IN_BLOCK`.
    """
    own = config.get("groups") or {}
    factors = dict(config.get("lr_scale") or {}) | {k: v["lr_scale"] for k, v in own.items() if "lr_scale" in v}
    found: dict[tuple, list] = {}
    for name, module in model.components().items():
        component = TRAINED_WITH.get(name, name)
        settings = own.get(component, {})
        decay = settings.get("weight_decay", config.get("weight_decay", 0.0))
        layers = layer_factors(name, module, settings["layer_decay"]) if "layer_decay" in settings else {}
        matrices = block_matrices(module) if split_blocks and settings.get("muon", True) else set()
        for parameter in module.parameters():
            if parameter.requires_grad:
                scale = factors.get(component, 1.0) * layers.get(parameter, 1.0)
                key = (scale, decay if parameter.ndim >= 2 else 0.0, parameter in matrices)
                found.setdefault(key, []).append(parameter)
    groups = []
    for (scale, decay, in_block), members in found.items():
        mark = {IN_BLOCK: in_block} if split_blocks else {}
        groups.append(dict(params=members, lr=config["lr"] * scale, weight_decay=decay, **mark))
    return groups


def layer_factors(name: str, component: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Factors of layer-wise decay, as BEiT has them: 1 for what stands behind the blocks (a last norm, the LM head),
    ``decay`` for the last block, its square for the one before, and so on; what stands in front of the blocks
    (embeddings) has the smallest. In front is what is registered before the first block.

    Raises ``ValueError`` where a component has no ``blocks``.
    """
    if isinstance(component, CompositeEncoder):  # each by its own blocks; 1 for one without any
        if not component.blocks:
            raise _no_blocks(name, component)
        parts = [part for part in component.inner().values() if getattr(part, "blocks", None)]
        found = dict.fromkeys(component.parameters(), 1.0)
        return found | {key: factor for part in parts for key, factor in layer_factors(name, part, decay).items()}
    blocks = list(getattr(component, "blocks", None) or [])
    if not blocks:
        raise _no_blocks(name, component)
    place = {parameter: number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
    found, reached = {}, False
    for parameter in component.parameters():
        reached = reached or parameter in place
        number = place.get(parameter, len(blocks) + 1 if reached else 0)
        found[parameter] = decay ** (len(blocks) + 1 - number)
    return found


def _no_blocks(name: str, component: nn.Module) -> ValueError:
    return ValueError(
        f"optim.groups.{name}.layer_decay: {type(component).__name__} has no `blocks`: leave it out, or give the "
        "class a property `blocks`, its transformer blocks in order"
    )


def block_matrices(component: nn.Module) -> set[nn.Parameter]:
    """The matrices of a component's transformer blocks, and of those of its children (the heads are several)."""
    owners = [component, *component.children()]
    blocks = [block for owner in owners for block in getattr(owner, "blocks", None) or []]
    return {p for block in blocks for p in block.parameters() if p.ndim == 2}
