"""Workarounds for dependencies, each with the version it is for. tests/base/test_compat.py fails when one is no longer
needed."""

import copy
import inspect
import os
import stat
import warnings
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def enable_activation_checkpointing(model, settings: dict) -> None:
    """Let a Hugging Face model's blocks run under ``torch.utils.checkpoint`` with these keyword arguments.

    transformers 5.23 renamed the method and warns about the old name, which is the only one in 5.17.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def disable_activation_checkpointing(model) -> None:
    """The other way round."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()


def cache_argument(decoder) -> str:
    """The name of the argument that takes a Hugging Face decoder's keys and values of earlier positions.

    transformers 5.24 has ``cache`` and warns about ``past_key_values``, which is the only name in 5.17.
    """
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def without_buffer_sync() -> dict:
    """Arguments by which DDP leaves buffers alone in a forward pass.

    torch 2.14 warns about ``broadcast_buffers``, which is the only name in 2.11.
    """
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def mlflow_place(folder: Path) -> dict:
    """Arguments by which MMEngine's MLflow backend keeps its runs in ``folder``, in a database.

    MMEngine 0.10.7 keeps them there as a folder of files, which mlflow 3.17 refuses.
    """
    folder = folder.absolute()
    own = dict(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_location=(folder / "artifacts").as_uri())
    return dict(own, exp_name="asvr")  # the one that each database has keeps artifacts where the process was started


def give_mode_of_new_files(*files: Path) -> None:
    """Give ``files`` of one folder the permissions of any new file there, which the umask decides.

    safetensors 0.8 writes a temporary file and renames it. Only its owner may read such a file.
    """
    for file in files:
        probe = file.with_name(f".{file.name}.{os.getpid()}.mode")
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        file.chmod(mode)


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step changes nothing where ``optimizer.found_inf`` is 1, as torch's own GradScaler asks.

    The fused SGD of torch 2.14 then leaves its momentum as the memory was, if that is its first step.
    """
    momentum = isinstance(optimizer, torch.optim.SGD) and any(group["momentum"] for group in optimizer.param_groups)
    return getattr(optimizer, "_step_supports_amp_scaling", False) and not momentum


def forget_forward_passes(module: nn.Module) -> None:
    """Have FSDP2 forget forward passes that no backward pass follows.

    torch 2.14 notes every pass, also those without gradients, and gathers blocks ahead in the next backward
    pass by these notes: where one process has evaluated more batches than another, they wait for one another for ever.
    """
    from torch.distributed.fsdp import FSDPModule  # here: one process needs none of it

    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            state = unit._get_fsdp_state()
            single = getattr(state, "_fsdp_param_group", None)  # the attribute of torch before it had lists
            for group in getattr(state, "_fsdp_param_groups", [single]):
                if group is not None:  # None: a unit without parameters
                    group._post_forward_indices.clear()
                    group.comm_ctx.post_forward_order.clear()


def keep_no_half_copies() -> None:
    """Have compiled regions make autocast's half-precision copies of weights again in the backward pass.

    The partitioner of torch 2.11 to 2.15 saves whatever a matrix product of the backward pass reads: a second copy of
    all weights at 7B, and the input of every MLP's last product. Process-wide, for regions that are compiled later.
    """
    from torch._functorch import config

    config.ban_recompute_materialized_backward = False


def lmms_eval_result(value):
    """``value`` as lmms-eval hands it on unchanged: 0.7.3 makes a text of a loss with its flag, on which its tasks with
    choices then fail."""
    from lmms_eval.api.instance import GenerationResult

    return GenerationResult(text=value)


@contextmanager
def one_process_for_lmms_eval():
    """While it lasts, this process looks to lmms-eval as if it had been started alone.

    lmms-eval 0.7.3 reads from the environment how many processes there are, gives each a share of the questions by
    itself and gathers with ``accelerate``, which makes its own process groups. Our model shares its batches instead.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def read_downloaded_datasets(folder_of):
    """While it lasts, ``datasets.load_dataset`` reads a data set of the Hub out of the folder that ``folder_of`` gives
    for its name and its subset's (None: as ever).

    Without network, datasets 5.2 finds only what it has itself loaded before, not what ``hf download`` has fetched.
    """
    import datasets

    original = datasets.load_dataset

    def load_dataset(path, name=None, *args, **kwargs):
        return original(str(folder_of(path, name) or path), name, *args, **kwargs)

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = original


@contextmanager
def bases_of_package(package: str, file_of):
    """While it lasts, a config's ``_base_`` may name ``package::NAME``: MMEngine reads the file that ``file_of`` gives
    for NAME.

    MMEngine 0.10.7 has that spelling for OpenMMLab's own packages alone, and finds them by pkg_resources, which
    setuptools 82 no longer has.
    """
    from mmengine.config import Config

    original = Config._get_cfg_path

    def get_cfg_path(cfg_path: str, filename: str):
        scope, mark, name = cfg_path.partition("::")
        return (str(file_of(name)), None) if mark and scope == package else original(cfg_path, filename)

    Config._get_cfg_path = staticmethod(get_cfg_path)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(original)


def end_workers(batches) -> None:
    """End the processes of a DataLoader's iterator; in one process it has none.

    torch 2.11 to 2.15 asks each to end and then sends SIGTERM, which one that hangs in a read or is stopped does not
    see: Python would wait for it for ever at its end.
    """
    workers = getattr(batches, "_workers", ())
    if workers:
        batches._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join(1)


class GroupedShapes(TorchDispatchMode):
    """While it lasts, the products of an LLM's experts (``grouped_mm``: rows, each with its group's matrix) are tensors
    of the right shape with nothing in them.

    The kernel that torch 2.11 to 2.15 has for tensors without data refuses float32, which its others take.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._grouped_mm.default and (args[0].ndim, args[1].ndim) == (2, 3):
            return args[0].new_empty(args[0].shape[0], args[1].shape[2])
        return func(*args, **(kwargs or {}))


# Autograd functions that are matrix products: those of torchao's float8 layers, and of `QLora`.
PRODUCTS = ("matmul_with_hp_or_float8_args", "Nf4Product")


def count_macs(call: nn.Module, shapes: tuple, dtype: torch.dtype) -> int:
    """Multiply-adds of ``call`` on inputs of these shapes by fvcore, on the meta device.

    fvcore 0.1.5 counts nothing for scaled_dot_product_attention, for convolutions with padding="valid" and for the
    autograd functions of `PRODUCTS`, which get handlers, and for an LLM's experts, which are traced row by row
    (`GroupedShapes` would change how convolutions are traced). Tracing makes sizes tensors, which the meta convolution
    of torch 2.14 and 2.15 does not take: one without padding is traced as "valid", which is the same, and a network
    with others on the CPU.
    """
    try:
        with _without_numbers_of_padding(call), _experts_row_by_row(call):
            return _trace(call, shapes, dtype, "meta")
    except TypeError:
        return _trace(_on_cpu(call), shapes, dtype, "cpu")


@contextmanager
def _without_numbers_of_padding(call: nn.Module):
    """While it lasts, convolutions that pad nothing say so in a word."""
    convolutions = [m for m in call.modules() if type(m) is nn.Conv2d and not any(m.padding)]
    before = [module.padding for module in convolutions]
    for module in convolutions:
        module.padding = "valid"
    try:
        yield
    finally:
        for module, padding in zip(convolutions, before, strict=True):
            module.padding = padding


@contextmanager
def _experts_row_by_row(call: nn.Module):
    """While it lasts, each row is multiplied with the matrices of its own experts: as many products, and no more."""
    from transformers import PreTrainedModel  # here: reading a config need not wait for it

    models = [m for m in call.modules() if isinstance(m, PreTrainedModel)]
    before = [model.get_experts_implementation() for model in models]
    for model in models:
        model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        for model, chosen in zip(models, before, strict=True):
            model.set_experts_implementation(chosen)


def _on_cpu(call: nn.Module) -> nn.Module:
    """A copy with memory in place of the meta device's. What it computes does not matter, but buffers may be indices:
    those that are left to chance lie outside of their tables."""
    copied = copy.deepcopy(call).to_empty(device="cpu")
    for buffer in copied.buffers():
        buffer.zero_()
    return copied


def _trace(call: nn.Module, shapes: tuple, dtype: torch.dtype, device: str) -> int:
    inputs = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore uses parts of torch.jit that are deprecated, from its import on
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(call, inputs)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle("aten::_convolution_mode", _convolution_macs)
        for name in PRODUCTS:
            analysis.set_op_handle(f"prim::PythonOp.{name}", _product_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(analysis.total())


def _attention_macs(inputs: list, outputs: list) -> int:
    """``q k^T`` and ``weights v`` for q (..., heads, T, C), k and v (..., kv heads, T', C).

    Grouped-query attention has fewer k and v heads, which saves memory and no operation: q's heads count.
    """
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _product_macs(inputs: list, outputs: list) -> int:
    """Of rows (..., K) with a matrix to (..., N)."""
    return prod(outputs[0].type().sizes()) * inputs[0].type().sizes()[-1]


def _convolution_macs(inputs: list, outputs: list) -> int:
    """Of a convolution whose padding is a word."""
    weight, out = inputs[1].type().sizes(), outputs[0].type().sizes()
    return prod(out) * prod(weight[1:])
