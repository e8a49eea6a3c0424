"""Ranks stop behind the same step and skip the same steps, whichever of them has the reason."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import distributed, multiprocessing, nn

from asvr.base.interruption import Interrupted, interruptible, postponed
from asvr.engine.half_weights import SplitAdamW
from asvr.engine.hooks import SignalHook, SkipHook
from asvr.engine.optim import AutocastOptimWrapper

RANKS, ASKED, STOPPED = 2, 3, 4  # the signal comes to the second rank, after its hook of step 3


def rank(number: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=RANKS)
    found = dict(stop=_signal(number), skipped=_losses(number))
    (folder / f"{number}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def _signal(number: int) -> list:
    state = SimpleNamespace(iter=0, max_iters=9, train_loop=SimpleNamespace(stop=None))
    hook = SignalHook()
    try:
        with interruptible(), postponed():
            hook.before_train(state)
            while state.train_loop.stop is None:
                state.iter += 1
                hook.after_train_iter(state, state.iter - 1)
                if number == 1 and state.iter == ASKED:
                    os.kill(os.getpid(), signal.SIGUSR1)
            raise state.train_loop.stop
    except Interrupted as stop:
        return [stop.received.name, state.iter]


def _losses(number: int) -> dict:
    """Gradients are finite everywhere; in the second step the first rank's loss is not."""
    weight = nn.Parameter(torch.ones(3))
    wrapper = AutocastOptimWrapper(SplitAdamW([weight], lr=0.1), precision="float32", clip_grad=None)
    hook = SkipHook(stage="tune", interval=2, limit=0)
    state = SimpleNamespace(
        iter=0,
        max_iters=2,
        model=SimpleNamespace(weights=lambda: {"loss": 1.0}),
        optim_wrapper=wrapper,
        train_loop=SimpleNamespace(stop=None),
    )
    values = []
    for step in (1, 2):
        loss = weight.sum() + (float("inf") if (number, step) == (0, 2) else 0.0)
        wrapper.backward(loss)
        wrapper.step()
        wrapper.zero_grad()
        values.append(weight.tolist())
        state.iter = step
        batch = SimpleNamespace(sample_ids=[f"{number}.{step}"])
        hook.after_train_iter(state, step - 1, [batch], dict(loss=loss.detach()))
    return dict(values=values, stop=str(state.train_loop.stop))


def test_all_ranks_stop_behind_the_same_step_and_skip_the_same_steps(tmp_path):
    multiprocessing.spawn(rank, (tmp_path,), RANKS)
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(RANKS)]
    assert found[0] == found[1]
    assert found[0]["stop"] == ["SIGUSR1", STOPPED]
    before, after = found[0]["skipped"]["values"]
    assert before == after != [1.0] * 3 and "1 steps were skipped" in found[0]["skipped"]["stop"]
