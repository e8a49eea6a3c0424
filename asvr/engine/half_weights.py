"""Trains weights in bfloat16, while the optimiser keeps the 16 bits that are missing to float32.

A float32 number is a bfloat16 number and 16 more bits. The model holds the bfloat16 numbers, and the optimiser holds
the other bits. Together they are the float32 weights that AdamW updates. So no weight is cast in the forward or
backward pass, no update is lost, and nothing is stored twice. Gradients of a step's micro-batches add up in float32.
The optimiser can also keep its moments in bfloat16.
"""

import weakref
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim.adamw import adamw

from asvr.models.shards import local_tensor
from asvr.registry import OPTIMIZERS


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split float32 into the nearest bfloat16 and the rest, as int16 in units of the last bit.

    If two bfloat16 are equally near, the larger in magnitude is used."""
    bits = weight.view(torch.int32)
    upper = ((bits + 2**15) >> 16).to(torch.int16)
    return upper.view(torch.bfloat16), (bits - (upper.to(torch.int32) << 16)).to(torch.int16)


def join(upper: Tensor, lower: Tensor) -> Tensor:
    """Put the two results of `split` together again. The float32 is the same, bit for bit."""
    return ((upper.view(torch.int16).to(torch.int32) << 16) + lower.to(torch.int32)).view(torch.float32)


def round_stochastically(value: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to one of the two nearest bfloat16 numbers, so that the mean of many results is exact.

    A number that bfloat16 has stays as it is."""
    bits = torch.randint(0, 2**16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    bits.add_(value.view(torch.int32)).bitwise_right_shift_(16)
    return bits.to(torch.int16).view(torch.bfloat16)


@OPTIMIZERS.register_module(name="AdamW")
class SplitAdamW(torch.optim.AdamW):
    """torch's fused AdamW, which computes the same updates for bfloat16 parameters as for float32 ones.

    lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
    moments: the dtype in which both moments are kept between steps, ``float32`` or ``bfloat16``. A step computes in
        float32. In bfloat16, ``exp_avg_sq`` gets stochastic rounding: with ``betas[1]=0.999`` its updates are smaller
        than half of the last bit of bfloat16, so the nearest number would be the old one. The random numbers follow
        from the number of the step. They are the same in all processes, and the global random state does not change.

    sums: the float32 gradients so far of bfloat16 parameters. The parameter's own ``grad`` is added to them and removed
    as soon as it is computed. found_inf: a float32 tensor (), as in torch's fused optimisers; a step changes nothing if
    it is 1. Parameters may be sharded (`DTensor`). Raises ``ValueError`` for parameters of another half precision.
    """

    half_precision = True
    choices = dict(moments=("float32", "bfloat16"))  # allowed values of fields

    def __init__(
        self,
        params: list,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        moments: str = "float32",
    ):
        if moments not in self.choices["moments"]:
            raise ValueError(f"optim.moments={moments!r}: expected 'float32' or 'bfloat16'")
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=True)
        self.rounds = moments == "bfloat16"
        self.sums: dict[Tensor, Tensor] = {}
        this = weakref.ref(self)

        def take(parameter: Tensor) -> None:
            if (optimizer := this()) is not None:
                optimizer._add(parameter)

        for parameter in self._parameters():
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"trained weights are {parameter.dtype}: set dtype='bfloat16' or 'float32'")
            if parameter.dtype == torch.bfloat16:
                parameter.register_post_accumulate_grad_hook(take)

    def _parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the moments between steps."""
        return torch.bfloat16 if self.rounds else torch.float32

    def _is_own(self, parameter: Tensor) -> bool:
        """Whether `_step` updates a parameter. torch's AdamW updates the others."""
        return self.rounds or parameter.dtype == torch.bfloat16

    def _add(self, parameter: Tensor) -> None:
        if parameter in self.sums:
            self.sums[parameter] += parameter.grad
        else:
            self.sums[parameter] = parameter.grad.float()
        parameter.grad = None

    def add_up(self, bucket_bytes: float) -> None:
        """Add the gradients of bfloat16 parameters up over all processes, ``bucket_bytes`` at a time.

        Every process calls it. A parameter without a gradient counts as zeros."""
        half = [parameter for parameter in self._parameters() if parameter.dtype == torch.bfloat16]
        for parameter in half:
            if parameter not in self.sums:
                self.sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        bucket: list[Tensor] = []
        for gradient in (self.sums[parameter] for parameter in half):
            if bucket and sum(one.nbytes for one in bucket) + gradient.nbytes > bucket_bytes:
                _all_reduce(bucket)
                bucket = []
            bucket.append(gradient)
        if bucket:
            _all_reduce(bucket)

    @torch.no_grad()
    def step(self, closure=None):
        generator = self._generator() if self.rounds else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self._is_own(parameter):
                    self._add(parameter)
                if parameter in self.sums:
                    self._step(parameter, group, generator)
        return super().step(closure)  # updates only parameters that are not its own: the others have no `grad`

    def _generator(self) -> torch.Generator:
        """The random numbers of this step. A plain number in the state counts the steps, so no device is waited for."""
        first = self.param_groups[0]
        first["roundings"] = first.get("roundings", 0) + 1  # a checkpoint with float32 moments has none
        return torch.Generator(first["params"][0].device).manual_seed(first["roundings"])

    def _step(self, parameter: Tensor, group: dict, generator: torch.Generator | None) -> None:
        state, gradient = self.state[parameter], self.sums.pop(parameter)
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state |= {key: torch.zeros_like(gradient, dtype=self._dtype) for key in ("exp_avg", "exp_avg_sq")}
            if parameter.dtype == torch.bfloat16:
                state["lower"] = torch.zeros_like(parameter, dtype=torch.int16)
        held = local_tensor(parameter)
        own = {key: local_tensor(value) for key, value in state.items()}
        weight = join(held, own["lower"]) if "lower" in own else held
        mean, square = own["exp_avg"].float(), own["exp_avg_sq"].float()
        adamw(
            [weight],
            [local_tensor(gradient)],
            [mean],
            [square],
            [],
            [own["step"]],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=getattr(self, "found_inf", None),
        )
        if "lower" in own:
            upper, lower = split(weight)
            held.copy_(upper)
            own["lower"].copy_(lower)
            del upper, lower
        del weight  # here and above: what is not needed, since the largest weights are large
        if self.rounds:
            own["exp_avg"].copy_(mean)
            del mean
            own["exp_avg_sq"].copy_(round_stochastically(square, generator))

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.sums.clear()

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state. (torch alone would cast it to the dtype of the parameter.)"""
        super().load_state_dict(state_dict)
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for name, parameter in zip(names, self._parameters(), strict=True):
            if self._is_own(parameter) and name in state_dict["state"]:
                own = state_dict["state"][name]
                self.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in own.items()}
                for key in ("exp_avg", "exp_avg_sq"):  # the state may be of another choice of `moments`
                    self.state[parameter][key] = self.state[parameter][key].to(self._dtype)


def _all_reduce(bucket: list[Tensor]) -> None:
    """Add tensors of one dtype up over all processes, in place and by one exchange."""
    if len(bucket) == 1:
        dist.all_reduce(bucket[0])
        return
    flat = torch.cat([one.flatten() for one in bucket])
    dist.all_reduce(flat)
    torch._foreach_copy_(
        bucket, [part.view_as(one) for part, one in zip(flat.split([t.numel() for t in bucket]), bucket, strict=True)]
    )
