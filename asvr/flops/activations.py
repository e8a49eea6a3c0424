"""The tensors that a forward pass keeps for the backward pass.

They are counted on fake tensors, which have shapes and no data.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from asvr.base.compat import GroupedShapes
from asvr.models.attention import set_kernel
from asvr.models.batches import full_batch
from asvr.models.checkpointing import is_product


class _Results(TorchDispatchMode):
    """Counts the results of operations: products and attention while ``in_llm()``, and all results that are alive.

    parameters: the storages of parameters. Neither these nor copies of them in another precision count.
    """

    def __init__(self, in_llm: Callable[[], bool], parameters: set[int]):
        super().__init__()
        self.in_llm, self.ignored, self.products = in_llm, set(parameters), 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.casts: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        results = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
        if self.in_llm() and is_product(func):
            self.products += sum(t.numel() * t.element_size() for t in results)
        if func is torch.ops.aten._to_copy.default and not self.counts(args[0]):
            self.casts.append(out.untyped_storage())  # kept, so that no other storage takes its place
            self.ignored.add(self.casts[-1]._cdata)
        for storage in (t.untyped_storage() for t in results if self.counts(t)):
            self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def counts(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in self.ignored

    def alive(self) -> int:
        return sum(size for storage, size in self.storages.values() if not storage.expired())


def saved_bytes(model: nn.Module, shape: tuple[int, int, int], half: torch.dtype | None) -> tuple[int, int, int]:
    """Bytes that are kept for the backward pass: inside the LLM's blocks, results of products in them, and outside.

    Inside, the tensors that autograd saves are counted. The bytes of products are approximate. Outside, everything that
    is alive after the forward pass is counted, because activation checkpointing keeps tensors of its own. shape: see
    `asvr.flops.memory.largest_micro_batch`. Neither parameters nor their half-precision copies count. The model is
    moved to fake tensors.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    in_llm = False

    def pack(tensor: Tensor) -> Tensor:
        if in_llm and results.counts(tensor):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    def enter(*_) -> None:
        nonlocal in_llm
        in_llm = True

    def leave(*_) -> None:
        nonlocal in_llm
        in_llm = False

    decoder = model.llm.model.get_decoder()
    handles = [decoder.register_forward_pre_hook(enter), decoder.register_forward_hook(leave)]
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")  # about kernels that fake tensors do not run
        for module in model.components().values():
            if module is not model.encoder or any_trained(module):  # a frozen encoder's features are given
                module.to_empty(device="cpu")
        batch = full_batch(model, *shape)
        if not model.all_causal:
            set_kernel(model, "sdpa")  # this kernel takes a rule
        results = _Results(lambda: in_llm, {p.untyped_storage()._cdata for p in model.parameters()})
        with (
            GroupedShapes(),
            results,
            saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=half, enabled=half is not None),
        ):
            out = model(batch)
        alive = results.alive()
        del out  # this frees all that was kept
    for handle in handles:
        handle.remove()
    inside = sum(storage.nbytes() for storage in kept.values())
    return inside, results.products, max(0, alive - inside)


def any_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
