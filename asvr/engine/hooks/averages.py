"""Exponential moving averages of the trained weights."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from asvr.base.distributed import is_main_process
from asvr.engine import checkpoint
from asvr.engine.finished import EMA
from asvr.engine.parallel import unwrap
from asvr.models.shards import full_tensor, local_shard
from asvr.registry import HOOKS


@HOOKS.register_module()
class AverageHook(Hook):
    """Keeps exponential moving averages of the trained weights (``runtime.ema``).

    After each step ``average = decay * average + (1 - decay) * weight``, in float32. The first average is the weights
    that the stage starts from. A skipped step counts as a step that changed nothing.

    At the end of the stage, ``<folder>/ema`` holds the averages as the weights of a checkpoint. meta: see
    `asvr.engine.hooks.CheckpointHook`. Each process averages the parts of weights that it holds. A checkpoint has full
    averages. So sharded averages are gathered for it, and the first process keeps all of them in the CPU's memory for
    that time.
    """

    priority = "LOW"  # before the checkpoint, which holds the averages of its step

    def __init__(self, *, decay: float, folder: str, meta: dict):
        self.folder, self.meta = Path(folder), meta
        self.update = get_ema_multi_avg_fn(decay)
        self.averages: dict[str, Tensor] = {}
        self.saved: dict[str, Tensor] = {}  # the averages of the checkpoint to go on from, until training begins

    def state_dict(self) -> dict[str, Tensor]:
        found = {}
        for name, average in self.averages.items():
            full = full_tensor(average)
            if is_main_process():
                found[name] = full.cpu() if isinstance(average, DTensor) else full
        return found

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.saved = state

    @torch.no_grad()
    def before_train(self, runner) -> None:
        self.averages = {name: p.detach().clone().float() for name, p in _trained(runner.model).items()}
        for name, value in self.saved.items():
            self.averages[name].copy_(local_shard(value, self.averages[name]))
        self.saved = {}

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        weights = _trained(runner.model)
        own = [_local(weights[name]).float() for name in self.averages]
        self.update([_local(average) for average in self.averages.values()], own, None)

    @torch.no_grad()
    def after_train(self, runner) -> None:
        if runner.train_loop.stop is not None:
            return
        weights = _trained(runner.model)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(self.averages[name])
        checkpoint.save(self.folder / EMA, model=unwrap(runner.model), state={}, meta=dict(self.meta, step=runner.iter))
        for name, weight in weights.items():
            weight.copy_(before[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unwrap(model).named_parameters() if p.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
