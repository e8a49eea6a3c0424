"""The bytes of a stage's states: weights, their gradients, and the optimiser's state."""

from dataclasses import dataclass

import torch
from torch import nn

from asvr.flops.sharded import in_full
from asvr.recipe.optimizer_state import state_bytes
from asvr.recipe.recipe import Stage


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of a whole stage. optimizer: with the averages of ``runtime.ema``. whole: bytes of weights that each of
    several processes has in full on its device."""

    weights: int
    gradients: int
    optimizer: int
    whole: int = 0

    @property
    def states(self) -> int:
        return self.weights + self.gradients + self.optimizer

    def share(self, cards: int) -> int:
        """Bytes of each of ``cards`` cards that share the states evenly, without what each has in full."""
        return (self.states - self.whole) // cards


def states_of(stage: Stage, model: nn.Module) -> States:
    """The states of a stage. model: from `asvr.recipe.preflight.build_meta`."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # Gradients are float32. The optimiser holds the bits that half-precision weights do not have.
    lower = sum(p.numel() * (torch.float32.itemsize - p.element_size()) for p in trained)
    return States(
        weights=sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]),
        gradients=sum(p.numel() for p in trained) * torch.float32.itemsize,
        optimizer=held_bytes(stage, model) + lower,
        whole=sum(p.numel() * p.element_size() for p in in_full(stage, model)),
    )


def held_bytes(stage: Stage, model: nn.Module) -> int:
    """Bytes of the optimiser's state and of the averages of ``runtime.ema``."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    averages = trained * torch.float32.itemsize if stage.runtime.get("ema") else 0
    return state_bytes(model, dict(stage.optim)) + averages
