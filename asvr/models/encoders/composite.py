"""The base class of encoders that consist of other components."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.data.transforms import Pixels, device_of
from asvr.models.component import Component, apart_of, fingerprint, fingerprint_of, source_of
from asvr.models.encoders.base import Encoder
from asvr.models.shards import untied_state_dict
from asvr.models.tree import is_trained


class CompositeEncoder(Encoder):
    """An encoder that consists of other components.

    A subclass registers its components as submodules, lists them in `inner`, and calls `note_sources` at the end of its
    constructor. As with other encoders, checkpoints hold the weights that no file of a component holds.
    """

    def inner(self) -> dict[str, nn.Module]:
        """Return its components by their names in the module tree, such as ``encoders.0``."""
        raise NotImplementedError(f"{type(self).__name__} needs a method inner() that lists its components")

    def note_sources(self) -> None:
        """Set ``source`` and ``apart`` from those of the components."""
        in_files = {name: part for name, part in self.inner().items() if source_of(part) is not None}
        if not in_files:
            return
        self.source = "; ".join(dict.fromkeys(source_of(part) for part in in_files.values()))
        found = {
            f"{name}.{key}" for name, part in in_files.items() for key in part.state_dict().keys() - apart_of(part)
        }
        self.apart = frozenset(untied_state_dict(self).keys() - found)

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for part in self.inner().values() for block in getattr(part, "blocks", ())]

    def train(self, mode: bool = True) -> "CompositeEncoder":
        """Set training or eval mode. A component without weights to train stays in eval mode, as a frozen encoder."""
        super().train(mode)
        for part in self.inner().values():
            if not is_trained(part):
                part.eval()
        return self

    def fingerprint(self) -> str:
        """Return a fingerprint of the tensors, and of the components' own fingerprints if they define one."""
        own = [fingerprint_of(part) for part in _single(self) if _says_more(part)]
        return (
            hashlib.sha256(" ".join([fingerprint(self), *own]).encode()).hexdigest()[:16] if own else fingerprint(self)
        )


def run_part(part: nn.Module, function: Callable[[Pixels], Tensor], pixels: Pixels) -> Tensor:
    """Call ``function`` of a component with pixels.

    If the component has no weights to train, it runs as a frozen encoder does: without gradients and in its own
    precision. This does not depend on whether other components are trained."""
    if torch.is_grad_enabled() and is_trained(part):
        return function(pixels)
    with torch.no_grad(), full_float32(device_of(pixels)):
        return function(pixels)


def _single(encoder: CompositeEncoder) -> list[nn.Module]:
    """Return all components that do not consist of other components."""
    parts = encoder.inner().values()
    return [one for part in parts for one in (_single(part) if isinstance(part, CompositeEncoder) else [part])]


def _says_more(part: nn.Module) -> bool:
    return hasattr(part, "fingerprint") and type(part).fingerprint is not Component.fingerprint
