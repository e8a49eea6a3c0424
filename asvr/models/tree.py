"""Checks that all tensors of a model are in its module tree and in a component, so that they are trained and saved."""

from collections.abc import Iterable

from torch import nn

TRAINABLE = ("encoder", "projector", "llm", "heads")  # what a stage's `train` may name
# Components that `train` does not name -> the component with which they are trained. Separators are trained if any part
# of the projector is.
TRAINED_WITH = dict(losses="heads", separators="projector")
KEPT = ("losses", "teachers", "separators")  # components that checkpoints always hold, since no other file does


def is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def check_tree(model: nn.Module, others: Iterable[object] = ()) -> None:
    """Raise ``ValueError`` if a part holds weights to train in a plain list or dict, where torch does not see them.

    Such weights would be neither moved to the device, nor trained, nor saved. others: parts that are not modules. They
    must not hold weights to train at all."""
    known = {id(parameter) for parameter in model.parameters()}
    for owner in [*model.modules(), *others]:
        for key, value in getattr(owner, "__dict__", {}).items():
            for held in _held_in(value) if key not in ("_parameters", "_modules") else ():
                parameters = held.parameters() if isinstance(held, nn.Module) else [held]
                if any(p.requires_grad and id(p) not in known for p in parameters):
                    raise ValueError(
                        f"{type(owner).__name__}.{key} holds {type(held).__name__} with weights to train where torch "
                        "does not see them: register them (nn.Module, nn.ModuleList, nn.ModuleDict or "
                        "nn.ParameterList; in a target: in its head), or freeze them (requires_grad_(False))"
                    )


def _held_in(value) -> list[nn.Module | nn.Parameter]:
    """Return the modules and parameters that an attribute is or contains."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else [value]
    return [item for item in items if isinstance(item, nn.Module | nn.Parameter)]


def check_components(model: nn.Module, components: dict[str, nn.Module]) -> None:
    """Raise ``ValueError`` if a tensor of the model is in none of its ``components()``."""
    inside = {id(t) for part in components.values() for t in (*part.parameters(), *part.buffers())}
    held = (*model.named_parameters(), *model.named_buffers())
    outside = [key for key, tensor in held if id(tensor) not in inside]
    if outside:
        raise ValueError(
            f"{type(model).__name__}.components() leaves out {', '.join(outside[:3])} ({len(outside)} in all), which "
            "would be neither trained nor saved: add the part that holds it"
        )
