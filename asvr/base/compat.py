"""Workarounds for dependencies, each with the version that needs it.

tests/base/test_compat.py fails when one is no longer needed.
"""

import copy
import inspect
import logging
import os
import stat
import warnings
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def hide_enum_warnings_of_torchao() -> None:
    """Hide the warnings of torch about the enums of torchao. Call it before torchao is imported.

    torchao 0.18 registers its enums as constants of torch's pytree. torch 2.14 knows enums without that, and warns.
    transformers imports torchao if it is installed, so nearly every command would begin with these lines.
    """
    logging.getLogger("torch.utils._pytree").addFilter(_is_no_enum_warning_of_torchao)


def _is_no_enum_warning_of_torchao(record: logging.LogRecord) -> bool:
    found = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return not (getattr(found, "__module__", "").startswith("torchao.") and "is an Enum subclass" in str(record.msg))


hide_enum_warnings_of_torchao()  # here, because a call elsewhere could come after the import of transformers


def enable_activation_checkpointing(model, settings: dict) -> None:
    """Let a Hugging Face model's blocks run under ``torch.utils.checkpoint`` with these keyword arguments.

    transformers 5.23 renamed the method and warns about the old name, which is the only one in 5.17.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def disable_activation_checkpointing(model) -> None:
    """Undo `enable_activation_checkpointing`."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()


def cache_argument(decoder) -> str:
    """The name of a Hugging Face decoder's argument for the keys and values of earlier positions.

    transformers 5.24 has ``cache`` and warns about ``past_key_values``, which is the only name in 5.17.
    """
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def without_buffer_sync() -> dict:
    """Arguments for DDP so that it does not synchronise buffers in a forward pass.

    torch 2.14 warns about ``broadcast_buffers``, which is the only name in 2.11.
    """
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def mlflow_place(folder: Path) -> dict:
    """Arguments for MMEngine's MLflow backend so that it keeps runs in a database in ``folder``.

    MMEngine 0.10.7 keeps them as a folder of files, which mlflow 3.17 refuses.
    """
    folder = folder.absolute()
    own = dict(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_location=(folder / "artifacts").as_uri())
    return dict(own, exp_name="asvr")  # the default experiment keeps artifacts in the current folder


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
    """Whether a step of the optimizer changes nothing if ``optimizer.found_inf`` is 1, as torch's GradScaler expects.

    In torch 2.14, the fused SGD leaves its momentum uninitialised if that happens in the first step.
    """
    momentum = isinstance(optimizer, torch.optim.SGD) and any(group["momentum"] for group in optimizer.param_groups)
    return getattr(optimizer, "_step_supports_amp_scaling", False) and not momentum


def forget_forward_passes(module: nn.Module) -> None:
    """Make FSDP2 forget forward passes without a backward pass.

    torch 2.14 records every forward pass, also those without gradients, and uses the record to gather blocks ahead in
    the next backward pass. If one process has evaluated more batches than another, they wait for each other forever.
    """
    from torch.distributed.fsdp import FSDPModule  # imported here: one process does not need it

    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            state = unit._get_fsdp_state()
            single = getattr(state, "_fsdp_param_group", None)  # older torch has one group, not a list
            for group in getattr(state, "_fsdp_param_groups", [single]):
                if group is not None:  # None: a unit without parameters
                    group._post_forward_indices.clear()
                    group.comm_ctx.post_forward_order.clear()


def keep_no_half_copies() -> None:
    """Make compiled regions recompute autocast's half-precision copies of weights in the backward pass.

    The partitioner of torch 2.11 to 2.15 saves everything that a matrix product of the backward pass reads: a second
    copy of all weights at 7B, and the input of every MLP's last product. The setting is process-wide, for regions that
    are compiled later.
    """
    from torch._functorch import config

    config.ban_recompute_materialized_backward = False


def lmms_eval_result(value):
    """Wrap ``value`` so that lmms-eval passes it on unchanged.

    lmms-eval 0.7.3 turns a pair of loss and flag into a text, and its tasks with choices then fail.
    """
    from lmms_eval.api.instance import GenerationResult

    return GenerationResult(text=value)


@contextmanager
def one_process_for_lmms_eval():
    """Inside the block, lmms-eval sees this process as the only one.

    lmms-eval 0.7.3 reads the number of processes from the environment, splits the questions among them and gathers
    with ``accelerate``, which makes its own process groups. Our model splits its batches itself.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def read_downloaded_datasets(folder_of):
    """Inside the block, ``datasets.load_dataset`` reads datasets of the Hub from local folders.

    folder_of: (name, subset) -> folder; None: no change. Without network, datasets 5.2 only finds datasets that it has
    loaded before, not those that ``hf download`` has fetched.
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
    """Inside the block, ``_base_`` of a config may be ``package::NAME``. file_of: NAME -> the file to read.

    MMEngine 0.10.7 has that spelling only for OpenMMLab's own packages, and finds them with pkg_resources, which
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
    """End the worker processes of a DataLoader's iterator, if it has any.

    torch 2.11 to 2.15 asks each worker to end and then sends SIGTERM. A worker that hangs in a read or is stopped does
    not react, and Python would wait for it forever at exit.
    """
    workers = getattr(batches, "_workers", ())
    if workers:
        batches._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join(1)


class GroupedShapes(TorchDispatchMode):
    """Inside the block, matrix products of experts (``grouped_mm``) return empty tensors of the right shape.

    The kernel of torch 2.11 to 2.15 for tensors without data refuses float32; its other kernels accept it.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._grouped_mm.default and (args[0].ndim, args[1].ndim) == (2, 3):
            return args[0].new_empty(args[0].shape[0], args[1].shape[2])
        return func(*args, **(kwargs or {}))


# Autograd functions that are matrix products, in torchao's float8 layers and in `QLora`.
PRODUCTS = ("matmul_with_hp_or_float8_args", "Nf4Product")


def count_macs(call: nn.Module, shapes: tuple, dtype: torch.dtype) -> int:
    """The multiply-adds of ``call`` on inputs of these shapes, counted by fvcore on the meta device.

    fvcore 0.1.5 does not count scaled_dot_product_attention, convolutions with padding="valid" and the autograd
    functions of `PRODUCTS`; handlers add them. It does not count an LLM's experts either; they are traced row by row,
    since `GroupedShapes` would change how convolutions are traced. Tracing turns sizes into tensors, and the meta
    convolution of torch 2.14 and 2.15 does not accept those. So a convolution without padding is traced as "valid",
    which is the same, and a network with other convolutions is traced on the CPU.
    """
    try:
        with _without_numbers_of_padding(call), _experts_row_by_row(call):
            return _trace(call, shapes, dtype, "meta")
    except TypeError:
        return _trace(_on_cpu(call), shapes, dtype, "cpu")


@contextmanager
def _without_numbers_of_padding(call: nn.Module):
    """Inside the block, convolutions without padding have padding="valid"."""
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
    """Inside the block, each row is multiplied with the matrices of its own experts only, so the count is exact."""
    from transformers import PreTrainedModel  # imported here: reading a config does not need it

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
    """A copy on the CPU of a module on the meta device. Its results do not matter, but buffers are set to 0: they may
    be indices, and random ones could lie outside of their tables."""
    copied = copy.deepcopy(call).to_empty(device="cpu")
    for buffer in copied.buffers():
        buffer.zero_()
    return copied


def _trace(call: nn.Module, shapes: tuple, dtype: torch.dtype, device: str) -> int:
    inputs = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore uses deprecated parts of torch.jit, already at import
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(call, inputs)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle("aten::_convolution_mode", _convolution_macs)
        for name in PRODUCTS:
            analysis.set_op_handle(f"prim::PythonOp.{name}", _product_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(analysis.total())


def _attention_macs(inputs: list, outputs: list) -> int:
    """Multiply-adds of ``q k^T`` and ``weights v`` for q (..., heads, T, C), k and v (..., kv heads, T', C).

    The heads of q count: fewer k and v heads, as in grouped-query attention, save memory but no operations.
    """
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _product_macs(inputs: list, outputs: list) -> int:
    """Multiply-adds of rows (..., K) times a matrix, which gives (..., N)."""
    return prod(outputs[0].type().sizes()) * inputs[0].type().sizes()[-1]


def _convolution_macs(inputs: list, outputs: list) -> int:
    """Multiply-adds of a convolution whose padding is a word."""
    weight, out = inputs[1].type().sizes(), outputs[0].type().sizes()
    return prod(out) * prod(weight[1:])
