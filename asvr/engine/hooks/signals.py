"""Ends a run after the step in which a signal came."""

import signal

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook

from asvr.base.distributed import PATIENCE
from asvr.base.interruption import Interrupted, received
from asvr.base.log import logger
from asvr.registry import HOOKS


@HOOKS.register_module()
class SignalHook(Hook):
    """Ends a run cleanly when a signal comes (SIGTERM, SIGUSR1, Ctrl-C), see `asvr.base.interruption`.

    All ranks stop after the same step. They exchange one number in each step, on the CPU, so that no rank waits for its
    device.
    """

    priority = "LOW"  # before the checkpoint hook, which writes a checkpoint when a run stops

    def before_train(self, runner) -> None:
        several = get_world_size() > 1
        self.group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if several else None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        number = received() or 0
        if self.group is not None:
            highest = torch.tensor(int(number))
            all_reduce(highest, "max", self.group)
            number = highest.item()
        if number and runner.train_loop.stop is None:
            runner.train_loop.stop = Interrupted(signal.Signals(number))
            logger.warning("%s: stops after step %d of %d", signal.Signals(number).name, runner.iter, runner.max_iters)
