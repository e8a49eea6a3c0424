"""Cross-entropy of a classifier that never holds the logits of all rows.

Legend: ``S`` rows, ``H`` width, ``V`` classes.
"""

import logging
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger("asvr")

# Logits at once, as float32, and as many for their softmax: 32 MiB on the CPU, 256 MiB on CUDA, where a chunk has to be
# large for its products to outweigh reading the classifier and writing its gradient.
MAX_LOGITS = dict(cpu=2**23, cuda=2**26)
MANY_CLASSES = 2**18  # of a layer that does not tell how many it has
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def linear_cross_entropy(
    hidden_SH: Tensor,
    linear: nn.Module,
    target_S: Tensor,
    *,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy in nats and the number of rows whose largest logit is the target's,
    both 0-dimensional float32. The softmax is float32 whatever the precision of the matrix product.

    linear: a plain linear layer, whose weights are used, or any other module from hidden states to logits (an adapter
    around a layer, a layer with hooks or of another class), which is called. scale, softcap: what is done to its
    logits before the softmax, see `changed_logits`.

    Torch's own ``linear_cross_entropy`` (2.15) works in the same way but gives no predictions: the count of right
    ones would cost a fourth matrix product, and torch 2.11 has none.
    """
    if not is_plain(linear):
        return _called_cross_entropy(hidden_SH, linear, target_S, label_smoothing, scale, softcap)
    tensors = (hidden_SH, linear.weight, linear.bias)
    if not torch.is_grad_enabled():  # autograd asks its functions for gradients even then
        tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    return _LinearCrossEntropy.apply(*tensors, target_S, label_smoothing, scale, softcap)


def changed_logits(logits: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Logits as an LLM gives them behind its LM head: times ``scale`` (Cohere, Granite), then squeezed between
    ``-softcap`` and ``softcap`` (Gemma 2)."""
    logits = logits if scale == 1.0 else logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _error_before(error_SV: Tensor, changed_SV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The derivative by the logits, from that by the changed logits, in place."""
    if softcap is not None:
        error_SV *= 1 - (changed_SV / softcap).square()
    return error_SV if scale == 1.0 else error_SV.mul_(scale)


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer does nothing but multiply by its weight and add its bias."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) in (Tensor, nn.Parameter, FakeTensor)
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks) for hooks in HOOKS)
    )


def _called_cross_entropy(
    hidden_SH: Tensor,
    module: nn.Module,
    target_S: Tensor,
    label_smoothing: float,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """As `linear_cross_entropy`: a chunk of rows at a time, whose logits are computed again for the backward pass."""
    _tell(type(module).__name__)
    kind = "cpu" if hidden_SH.device.type == "cpu" else "cuda"
    rows = max(1, MAX_LOGITS[kind] // getattr(module, "out_features", MANY_CLASSES))

    def of_chunk(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = changed_logits(module(hidden).float(), scale, softcap)
        loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
        return loss, (logits.detach().argmax(-1) == target).sum().float()

    results = []
    for hidden, target in zip(hidden_SH.split(rows), target_S.split(rows), strict=True):
        again = torch.is_grad_enabled()
        results.append(checkpoint(of_chunk, hidden, target, use_reentrant=False) if again else of_chunk(hidden, target))
    losses, corrects = zip(*results, strict=True)
    return torch.stack(losses).sum(), torch.stack(corrects).sum()


@lru_cache
def _tell(name: str) -> None:
    logger.info("cross-entropy goes through %s itself, which is no plain linear layer: it takes longer", name)


class _LinearCrossEntropy(torch.autograd.Function):
    """Chunk by chunk, the gradients are made right behind the logits: three matrix products in all, none again.

    What is kept for the backward pass is the gradients themselves, which are as large as hidden states and weights.
    """

    @staticmethod
    def forward(ctx, hidden_SH, weight_VH, bias_V, target_S, label_smoothing, scale, softcap):
        device = hidden_SH.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else weight_VH.dtype
        rows = max(1, (MAX_LOGITS["cpu"] if device == "cpu" else MAX_LOGITS["cuda"]) // weight_VH.shape[0])
        wanted = ctx.needs_input_grad[:3]
        grads = [
            torch.zeros_like(tensor, dtype=dtype_of_sum) if needed else None
            for tensor, needed, dtype_of_sum in zip(
                (hidden_SH, weight_VH, bias_V), wanted, (None, torch.float32, torch.float32), strict=True
            )
        ]  # what is added up over chunks is float32
        loss = torch.zeros((), device=hidden_SH.device)
        correct = torch.zeros((), device=hidden_SH.device)
        with torch.autocast(device, enabled=False):
            weight, bias = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
            for begin in range(0, hidden_SH.shape[0], rows):
                chunk = slice(begin, begin + rows)
                hidden, target = hidden_SH[chunk].to(dtype), target_S[chunk]
                logits = changed_logits(F.linear(hidden, weight, bias).float(), scale, softcap)
                correct += (logits.argmax(-1) == target).sum()
                chunk_loss, error = _loss_and_error(logits, target, label_smoothing, any(wanted))
                loss += chunk_loss
                if error is not None:
                    error = _error_before(error, logits, scale, softcap)
                _add_gradients(grads, chunk, error, hidden, weight)
        tensors = (hidden_SH, weight_VH, bias_V)
        ctx.dtypes = [None if grad is None else t.dtype for grad, t in zip(grads, tensors, strict=True)]
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        saved = iter(ctx.saved_tensors)
        grads = ((next(saved) * grad_loss).to(dtype) if dtype else None for dtype in ctx.dtypes)
        return *grads, None, None, None, None


def _loss_and_error(logits_SV: Tensor, target_S: Tensor, smoothing: float, wanted: bool):
    """The summed loss, and its derivative by the logits (softmax minus target)."""
    classes = logits_SV.shape[-1]
    logs_SV = torch.log_softmax(logits_SV, -1)
    picked_S = logs_SV.gather(1, target_S[:, None]).squeeze(1)
    mean_S = logs_SV.mean(-1) if smoothing else 0.0
    loss = -((1 - smoothing) * picked_S + smoothing * mean_S).sum()
    if not wanted:
        return loss, None
    probabilities_SV = logs_SV.exp_()
    if smoothing:
        probabilities_SV -= smoothing / classes
    probabilities_SV.scatter_add_(1, target_S[:, None], probabilities_SV.new_full((len(target_S), 1), smoothing - 1))
    return loss, probabilities_SV


def _add_gradients(grads: list, chunk: slice, error_SV: Tensor | None, hidden_SH: Tensor, weight_VH: Tensor) -> None:
    """Write or add the gradients of one chunk by hidden states, weight and bias, where they are wanted."""
    of_hidden, of_weight, of_bias = grads
    if of_bias is not None:
        of_bias += error_SV.sum(0)
    if error_SV is not None:
        error_SV = error_SV.to(hidden_SH.dtype)
    if of_hidden is not None:
        of_hidden[chunk] = error_SV @ weight_VH
    if of_weight is not None and of_weight.dtype == hidden_SH.dtype:
        of_weight.addmm_(error_SV.T, hidden_SH)  # without a copy of the weight's size
    elif of_weight is not None:
        of_weight += error_SV.T @ hidden_SH
