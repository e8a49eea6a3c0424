"""Checks whether several processes can share the training of a model, see `asvr.engine.parallel`."""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from asvr.base.distributed import gather, get_world_size


def check_precision(model: nn.Module) -> None:
    """Raise ``ValueError`` if trained weights are neither float32 nor bfloat16."""
    other = {p.dtype for p in model.parameters() if p.requires_grad} - {torch.float32, torch.bfloat16}
    if other:
        raise ValueError(
            f"parallel: trained weights are {other.pop()}, whose gradients several processes cannot add up: set "
            "dtype='float32' or dtype='bfloat16'"
        )


def check_statistics(model: nn.Module) -> None:
    """Raise ``ValueError`` if a trained norm keeps running statistics, as batch norm does.

    Each process would change its own statistics by its own samples. Synchronised statistics do not help: they wait for
    all processes, and one may have no image to encode."""
    if get_world_size() == 1:
        return
    model.train()  # a component may keep its norms in eval mode, and then they are allowed
    for part, component in model.components().items():
        for name, module in component.named_modules():
            if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
                raise ValueError(
                    f"parallel: {part} is trained, and its {name} ({type(module).__name__}) keeps running statistics, "
                    "which several processes cannot share: leave the component out of `train`, use one with another "
                    "norm (a frozen batch norm, a layer norm or a group norm), or start one process"
                )


def check_buffers(model: nn.Module) -> None:
    """Raise ``ValueError`` if a buffer differs between processes, since a checkpoint can hold only one value.

    Every process calls it."""
    if get_world_size() == 1:
        return
    own = {
        f"{part}.{key}": value
        for part, component in model.components().items()
        if component.training
        for key, value in _buffers(component).items()
    }
    sums = {key: hashlib.sha256(_bytes_of(value)).hexdigest()[:16] for key, value in own.items()}
    found = gather(sums)
    different = [key for key in sums if any(other.get(key) != sums[key] for other in found)]
    if different:
        raise ValueError(
            f"parallel: the buffer {different[0]} ({len(different)} in all) differs between processes, since it "
            "depends on a process's own samples: compute it from the samples of all processes, or start one process"
        )


def _buffers(component: nn.Module) -> dict[str, Tensor]:
    """The buffers that a checkpoint holds."""
    names = {name for name, _ in component.named_buffers()}
    return {key: value for key, value in component.state_dict().items() if key in names}


def _bytes_of(value: Tensor):
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
