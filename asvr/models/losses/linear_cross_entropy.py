"""The cross-entropy of a linear classifier, computed in chunks so that it never holds the logits of all rows.

Legend: ``S`` rows, ``H`` width, ``V`` classes, ``K`` classes that share the target of a row.
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

# The largest number of logits of a chunk: 32 MiB on the CPU and 256 MiB on CUDA as float32, and as much again for their
# softmax. Each chunk reads the classifier and writes its gradient; on CUDA a chunk has to be large, so that its matrix
# products take longer than that.
MAX_LOGITS = dict(cpu=2**23, cuda=2**26)
MANY_CLASSES = 2**18  # assumed for a layer that does not say how many classes it has
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class JoinedClassifier(nn.Module):
    """Several classifiers of the same hidden states, joined into one. Their classes are concatenated in one softmax."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.in_features = getattr(layers[0], "in_features", None)
        if all(hasattr(layer, "out_features") for layer in layers):
            self.out_features = sum(layer.out_features for layer in layers)

    def forward(self, hidden_SH: Tensor) -> Tensor:
        first, *others = self.layers  # the others may have another dtype
        return torch.cat([first(hidden_SH), *(layer(hidden_SH.to(_dtype(layer))) for layer in others)], dim=-1)


def _dtype(layer: nn.Module) -> torch.dtype:
    return next(layer.parameters()).dtype


def linear_cross_entropy(
    hidden_SH: Tensor,
    linear: nn.Module,
    target: Tensor,
    *,
    shares_SK: Tensor | None = None,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy in nats, and the number of rows whose target has the largest logit.

    Both are 0-dimensional float32. The softmax is in float32, whatever the precision of the matrix product.

    linear: any module from hidden states to logits. The weights of a plain linear layer, or of a `JoinedClassifier` of
    such layers, are used directly. Any other module (an adapter, a layer with hooks) is called.
    target: the class of each row (S,). With shares_SK: ``K`` different classes of each row (S, K). The first of them
    counts as the right one.
    shares_SK: the share of the target that each of the ``K`` classes has, float32; each row sums to 1.
    label_smoothing: the share of the target that is spread over all classes.
    scale, softcap: how the logits are changed before the softmax, see `changed_logits`.

    Torch's own ``linear_cross_entropy`` (2.15) works in the same way but returns no predictions. Counting the right
    ones would take a fourth matrix product. Torch 2.11 does not have it.
    """
    target_SK = target[:, None] if shares_SK is None else target
    layers = linear.layers if type(linear) is JoinedClassifier else [linear]
    if others := [layer for layer in layers if not is_plain(layer)]:
        _log_slow(type(others[0]).__name__)
        return _called_cross_entropy(hidden_SH, linear, target_SK, shares_SK, label_smoothing, scale, softcap)
    tensors = [hidden_SH, *(tensor for layer in layers for tensor in (layer.weight, layer.bias))]
    if not torch.is_grad_enabled():  # otherwise `needs_input_grad` would be True even then
        tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    return _LinearCrossEntropy.apply(target_SK, shares_SK, label_smoothing, scale, softcap, *tensors)


def changed_logits(logits: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Change logits as some LLMs do after their LM head.

    They are multiplied by ``scale`` (Cohere, Granite), then limited to ``-softcap`` to ``softcap`` by tanh (Gemma 2).
    """
    logits = logits if scale == 1.0 else logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _error_before(error_SV: Tensor, changed_SV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Return the gradient of the logits, from that of the changed logits. It changes its argument in place."""
    if softcap is not None:
        error_SV *= 1 - (changed_SV / softcap).square()
    return error_SV if scale == 1.0 else error_SV.mul_(scale)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer only multiplies by its weight and adds its bias, without hooks or other code."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) in (Tensor, nn.Parameter, FakeTensor)
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks) for hooks in HOOKS)
    )


def _called_cross_entropy(
    hidden_SH: Tensor,
    module: nn.Module,
    target_SK: Tensor,
    shares_SK: Tensor | None,
    label_smoothing: float,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute `linear_cross_entropy` by calling the module on chunks of rows.

    The logits of a chunk are recomputed in the backward pass."""
    kind = "cpu" if hidden_SH.device.type == "cpu" else "cuda"
    rows = max(1, MAX_LOGITS[kind] // getattr(module, "out_features", MANY_CLASSES))

    def of_chunk(hidden: Tensor, target: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = changed_logits(module(hidden).float(), scale, softcap)
        if shares is None:
            loss = F.cross_entropy(logits, target[:, 0], reduction="sum", label_smoothing=label_smoothing)
        else:
            loss, _ = _loss_and_error(logits, target, shares, label_smoothing, needs_error=False)
        return loss, (logits.detach().argmax(-1) == target[:, 0]).sum().float()

    results = []
    for begin in range(0, max(1, hidden_SH.shape[0]), rows):  # without rows there is one chunk, with the loss 0
        chunk = slice(begin, begin + rows)
        given = hidden_SH[chunk], target_SK[chunk], None if shares_SK is None else shares_SK[chunk]
        again = torch.is_grad_enabled()
        results.append(checkpoint(of_chunk, *given, use_reentrant=False) if again else of_chunk(*given))
    losses, corrects = zip(*results, strict=True)
    return torch.stack(losses).sum(), torch.stack(corrects).sum()


@lru_cache
def _log_slow(name: str) -> None:
    logger.info("cross-entropy calls %s, which is not a plain linear layer: this takes longer", name)


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy that computes the gradients of a chunk right after its logits.

    So there are three matrix products, and none is repeated. The backward pass keeps only the gradients, which are as
    large as the hidden states and the weights.
    """

    @staticmethod
    def forward(ctx, target_SK, shares_SK, label_smoothing, scale, softcap, hidden_SH, *parameters):
        """parameters: the weight and the bias of each layer, in the order of their classes."""
        device, tensors = hidden_SH.device.type, (hidden_SH, *parameters)
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else parameters[0].dtype
        classes = sum(weight_VH.shape[0] for weight_VH in parameters[::2])
        rows = max(1, (MAX_LOGITS["cpu"] if device == "cpu" else MAX_LOGITS["cuda"]) // classes)
        needs_grad = ctx.needs_input_grad[5:]
        grads = [
            torch.zeros_like(tensor, dtype=None if tensor is hidden_SH else torch.float32) if needed else None
            for tensor, needed in zip(tensors, needs_grad, strict=True)
        ]  # sums over chunks are float32
        loss = torch.zeros((), device=hidden_SH.device)
        correct = torch.zeros((), device=hidden_SH.device)
        with torch.autocast(device, enabled=False):
            cast = [None if tensor is None else tensor.to(dtype) for tensor in parameters]
            layers = list(zip(cast[::2], cast[1::2], strict=True))
            for begin in range(0, hidden_SH.shape[0], rows):
                chunk = slice(begin, begin + rows)
                hidden, target = hidden_SH[chunk].to(dtype), target_SK[chunk]
                logits = _joined([F.linear(hidden, weight, bias).float() for weight, bias in layers])
                logits = changed_logits(logits, scale, softcap)
                correct += (logits.argmax(-1) == target[:, 0]).sum()
                shares = None if shares_SK is None else shares_SK[chunk]
                chunk_loss, error = _loss_and_error(logits, target, shares, label_smoothing, any(needs_grad))
                loss += chunk_loss
                if error is not None:
                    error = _error_before(error, logits, scale, softcap)
                _add_gradients(grads, chunk, error, hidden, [weight for weight, _ in layers])
        ctx.dtypes = [None if grad is None else t.dtype for grad, t in zip(grads, tensors, strict=True)]
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        saved = iter(ctx.saved_tensors)
        grads = ((next(saved) * grad_loss).to(dtype) if dtype else None for dtype in ctx.dtypes)
        return None, None, None, None, None, *grads


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _loss_and_error(
    logits_SV: Tensor, target_SK: Tensor, shares_SK: Tensor | None, smoothing: float, needs_error: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss, and its gradient by the logits (softmax minus target) if ``needs_error``, else None."""
    classes = logits_SV.shape[-1]
    logs_SV = torch.log_softmax(logits_SV, -1)
    picked_SK = logs_SV.gather(1, target_SK)
    picked_S = (picked_SK if shares_SK is None else picked_SK * shares_SK).sum(1)
    mean_S = logs_SV.mean(-1) if smoothing else 0.0
    loss = -((1 - smoothing) * picked_S + smoothing * mean_S).sum()
    if not needs_error:
        return loss, None
    probabilities_SV = logs_SV.exp_()
    if smoothing:
        probabilities_SV -= smoothing / classes
    shares_SK = torch.ones_like(picked_SK) if shares_SK is None else shares_SK
    probabilities_SV.scatter_add_(1, target_SK, (smoothing - 1) * shares_SK)
    return loss, probabilities_SV


def _add_gradients(grads: list, chunk: slice, error_SV: Tensor | None, hidden_SH: Tensor, weights: list) -> None:
    """Add the gradients of one chunk to those of the hidden states, weights and biases that need one."""
    if error_SV is None:
        return
    errors = error_SV.split([len(weight_VH) for weight_VH in weights], dim=1)
    of_hidden, *of_layers = grads
    for i, (error, of_weight, of_bias) in enumerate(zip(errors, of_layers[::2], of_layers[1::2], strict=True)):
        if of_bias is not None:
            of_bias += error.sum(0)
        error = error.to(hidden_SH.dtype)
        if of_hidden is not None and i == 0:
            of_hidden[chunk] = error @ weights[i]
        elif of_hidden is not None:
            of_hidden[chunk] += error @ weights[i]
        if of_weight is not None and of_weight.dtype == hidden_SH.dtype:
            of_weight.addmm_(error.T, hidden_SH)  # in place: no temporary as large as the weight
        elif of_weight is not None:
            of_weight += error.T @ hidden_SH
