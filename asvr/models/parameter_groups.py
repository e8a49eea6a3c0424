"""The learning rate and the weight decay of each trained parameter."""

from torch import nn

from asvr.models.encoders.composite import CompositeEncoder
from asvr.models.tree import TRAINED_WITH

IN_BLOCK = "in_block"  # the key of a group that says whether it holds matrices of transformer blocks


def parameter_groups(model: nn.Module, config: dict, *, split_blocks: bool = False) -> list[dict]:
    """Return groups of the trained parameters for a torch optimiser, with ``params``, ``lr`` and ``weight_decay``.

    config: ``optim`` of the config. Its ``weight_decay`` applies only to matrices, not to biases and norms.
    ``lr_scale`` multiplies the learning rate of a component. ``groups`` sets options of a component: ``lr_scale``,
    ``weight_decay``, ``layer_decay`` and ``muon``. Losses have the options of the heads.
    split_blocks: put the matrices of transformer blocks into groups of their own, except in components with
    ``muon=False``, and mark each group with `IN_BLOCK`.
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
    """Return the factors of layer-wise decay of the learning rate, as in BEiT.

    The factor is 1 for parameters after the blocks (a last norm, the LM head), ``decay`` for the last block,
    ``decay ** 2`` for the block before, and so on. Parameters before the blocks (embeddings) have the smallest factor:
    these are the parameters that are registered before the first block.

    Raises ``ValueError`` if a component has no ``blocks``.
    """
    if isinstance(component, CompositeEncoder):  # each of its components by its own blocks; 1 if it has none
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
    """Return the matrices of a component's transformer blocks, and of its children's blocks (such as several heads)."""
    owners = [component, *component.children()]
    blocks = [block for owner in owners for block in getattr(owner, "blocks", None) or []]
    return {p for block in blocks for p in block.parameters() if p.ndim == 2}
