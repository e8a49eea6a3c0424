"""Low-rank adapters on layers with 4-bit weights (QLoRA) as a model transform."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asvr.models.component import apart_of, source_of
from asvr.models.transforms.layers import plain_linear
from asvr.models.transforms.lora import Lora
from asvr.registry import MODEL_TRANSFORMS

BLOCK = 64  # number of consecutive weights of a layer that share a scale
# NormalFloat: if weights are normally distributed, each of these numbers is the nearest one of equally many weights
# (QLoRA, https://arxiv.org/abs/2305.14314, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022833234, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@MODEL_TRANSFORMS.register_module()
class QLora(Lora):
    """`Lora` on layers whose own weights are frozen and kept in 4 bits (`Nf4Linear`).

    layers, r, alpha, dropout: as in `Lora`.

    Whenever the model is built, the weights are read from their files and rounded again. The result does not depend on
    the number of threads. Checkpoints hold only weights that are in no file.

    Raises the errors of `Lora`, and ``ValueError`` if a layer's number of weights is not a multiple of 64.
    """

    def __init__(self, *, layers: list[str], r: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__(layers=layers, r=r, alpha=alpha, dropout=dropout)
        self.derived: dict[str, set[str]] = {}  # see `asvr.models.transforms.apply`

    def __call__(self, model: nn.Module) -> None:
        elsewhere = {name: apart_of(part) for name, part in model.components().items() if source_of(part) is not None}
        super().__call__(model)
        for name in self.frozen:
            for key, layer in list(model.components()[name].named_modules()):
                if isinstance(getattr(layer, "base_layer", None), nn.Linear):
                    layer.base_layer = Nf4Linear(layer.base_layer)
                    if name in elsewhere and f"{key}.weight" not in elsewhere[name]:
                        own = {f"{key}.base_layer.{tensor}" for tensor in ("codes", "scales")}
                        self.derived[name] = self.derived.get(name, set()) | own

    def _found(self, model: nn.Module, peft) -> dict[str, dict[str, nn.Linear]]:
        found = super()._found(model, peft)
        for name, layers in found.items():
            for key, layer in layers.items():
                if layer.weight.numel() % BLOCK:
                    sizes = " x ".join(map(str, layer.weight.shape))
                    raise ValueError(
                        f"QLora: {name}.{key} is {sizes}, but its number of weights must be a multiple of {BLOCK}: "
                        "name other layers"
                    )
        return found

    def merge(self, model: nn.Module) -> None:
        """Add the adapters to the rounded weights, in the dtype that the weights had before rounding."""
        for name in self.frozen:
            for layer in list(model.components()[name].modules()):
                if isinstance(base := getattr(layer, "base_layer", None), Nf4Linear):
                    layer.base_layer = plain_linear(nn.Parameter(base.weight_in(base.dtype), False), base.bias)
        super().merge(model)
        self.derived = {}


class Nf4Linear(nn.Module):
    """A frozen linear layer with weights of 4 bits, and a float32 scale for each 64 weights.

    Products are computed in the input's precision. The weight is converted to it for each product, forward and
    backward. Between products only the 4 bits are kept. (QLoRA also rounds the scales. This is not done here: it uses
    their mean, which depends on the number of threads, and so would the model.)
    """

    kept_whole = True  # every process has all weights, they are not sharded

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.dtype, self.shape = layer.weight.dtype, layer.weight.shape
        codes, scales = quantize(layer.weight.detach())
        self.scales = nn.Parameter(scales, requires_grad=False)  # (blocks, 1)
        self.codes = nn.Parameter(codes, requires_grad=False)  # (blocks, 32) uint8, with two weights in each
        self.register_buffer("table", torch.tensor(NF4, device=codes.device), persistent=False)
        self.bias = layer.bias

    @property
    def uncounted(self) -> int:
        """The number of weights, minus the number of elements of ``scales`` and ``codes``."""
        return self.shape.numel() - self.codes.numel() - self.scales.numel()

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.scales, self.codes, self.table, self.shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        half = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else x.dtype
        out = Nf4Product.apply(x.to(dtype), self.scales, self.codes, self.table, self.shape)
        return out if self.bias is None else out + self.bias.to(dtype)


class Nf4Product(torch.autograd.Function):
    """The product of rows (..., K) and the transposed weight (N, K). The weight has no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, scales: Tensor, codes: Tensor, table: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(scales, codes, table)
        ctx.shape = shape
        return F.linear(x, dequantize(scales, codes, table, shape, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient @ dequantize(*ctx.saved_tensors, ctx.shape, gradient.dtype), None, None, None, None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (blocks, 32) and scales (blocks, 1) of a weight.

    The scale of a block of 64 weights is its largest absolute value. The code of a weight is the index in `NF4` of the
    number that is nearest to weight / scale. Every step is exact or rounds each number alone, so that the number of
    threads does not matter."""
    blocks = weight.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    parts = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)
    codes = torch.bucketize(parts, between, out_int32=True).to(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales


def dequantize(scales: Tensor, codes: Tensor, table: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the rounded weight from the scales and codes of `quantize`."""
    places = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1)
    return (table[places.int()] * scales).view(shape).to(dtype)
