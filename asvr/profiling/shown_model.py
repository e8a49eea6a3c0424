"""The parts of a model with their sizes, and the trained parts of each stage. ``asvr show`` prints them."""

from collections.abc import Iterator

from rich.table import Table
from torch import nn

from asvr.models.trainable import packed_weights

DEPTH = 2  # levels below a component


def model_table(models: dict[str, nn.Module], stage: str) -> Table:
    """A table of the parts of a model. models: of each stage, on the meta device. stage: its parts are the rows."""
    table = Table(title=f"Model of stage {stage}, parameters and codebooks", title_justify="left")
    table.add_column("part")
    table.add_column("class")
    table.add_column("size", justify="right")
    for name in models:
        table.add_column(f"trained in {name}", justify="right")
    parts = {name: dict(_parts(model)) for name, model in models.items()}
    for path, module in parts[stage].items():
        label = STEP * path.count("/") + path.rpartition("/")[2]
        trained = [_share(own[path]) if path in own else "" for own in parts.values()]
        table.add_row(label, _class(module), _number(_size(module)), *trained)
    return table


STEP = "  "


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, component in model.components().items():
        if _size(component):
            yield from _below(name, component, DEPTH)


def _below(path: str, module: nn.Module, depth: int) -> Iterator[tuple[str, nn.Module]]:
    """A module and its parts that have parameters or buffers. A list of equal blocks is one part."""
    yield path, module
    children = {name: child for name, child in module.named_children() if _size(child)}
    while len(children) == 1 and not isinstance(module, nn.ModuleDict):  # skip a wrapper
        ((name, module),) = children.items()
        children = {f"{name}.{below}": child for below, child in module.named_children() if _size(child)}
    if depth and not isinstance(module, nn.ModuleList):
        for name, child in children.items():
            yield from _below(f"{path}/{name}", child, depth - 1)


def _class(module: nn.Module) -> str:
    if isinstance(module, nn.ModuleList) and len(module):
        return f"{len(module)} x {type(module[0]).__name__}"
    return type(module).__name__


def _size(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict(keep_vars=True).values()) + packed_weights(module)


def _share(module: nn.Module) -> str:
    whole = _size(module)
    trained = sum(tensor.numel() for tensor in module.state_dict(keep_vars=True).values() if tensor.requires_grad)
    if trained in (0, whole):
        return "all" if trained else "no"
    return f"{_number(trained)} ({trained / whole:.1%})"


def _number(size: int) -> str:
    """A number as text, in millions if it is a million or more."""
    return f"{size / 1e6:,.2f} M" if size >= 1e6 else f"{size:,}"
