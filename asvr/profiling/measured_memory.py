"""Measure the memory of a training step, to check the plan of `asvr.flops.memory`."""

from asvr.base.precision import PRECISIONS
from asvr.engine.optim import build_optim_wrapper
from asvr.flops.peak_rate import held_tensors, step_peak
from asvr.models.attention import AUTO, use_attention
from asvr.models.batches import full_batch
from asvr.models.compiling import compile_blocks
from asvr.profiling.worker import random_model
from asvr.recipe.build import build_device
from asvr.recipe.recipe import Stage


def prepare(stage: Stage, rows: int, tokens: int, mode: str) -> Stage:
    """The stage with micro-batches of ``rows`` x ``tokens`` and a mode of activation checkpointing in the LLM."""
    stage.data.micro_batch = stage.data.global_batch = rows
    stage.data.max_length, stage.data.pack = tokens, False
    stage.model.llm.activation_checkpointing = mode
    return stage


def measured(stage: Stage) -> int:
    """The bytes at the peak of a step, see `asvr.flops.peak_rate`."""
    device = build_device(stage.runtime.device)
    model = random_model(stage, device)
    use_attention(model, stage.runtime.get("attention", AUTO), PRECISIONS[stage.optim.precision])
    if stage.runtime.get("compile"):
        compile_blocks(model)
    wrapper = build_optim_wrapper(model, stage.optim)
    batch = full_batch(model, stage.data.micro_batch, stage.data.max_length)
    window = [batch, batch]  # two micro-batches: during the second one all gradients are in memory

    def step() -> None:
        model.train_step(window, wrapper)

    step()  # the first step creates the optimiser's state
    return step_peak(step, device, held_tensors(model, wrapper.optimizer))
