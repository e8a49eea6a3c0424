"""Trains weights in bfloat16, while the optimiser keeps the 16 bits that are missing to float32.

A float32 number is a bfloat16 number and 16 more bits. The model holds the bfloat16 numbers, and the optimiser holds
the other bits. Together they are the float32 weights that AdamW updates. So no weight is cast in the forward or
backward pass, no update is lost, and nothing is stored twice. Gradients of a step's micro-batches add up in float32.
"""

import weakref
from itertools import chain

import torch
from torch import Tensor
from torch.optim.adamw import adamw

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


@OPTIMIZERS.register_module(name="AdamW")
class SplitAdamW(torch.optim.AdamW):
    """torch's fused AdamW, which computes the same updates for bfloat16 parameters as for float32 ones.

    lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.

    sums: for each bfloat16 parameter, its float32 gradient so far. The parameter's own ``grad`` is added to it and
    removed as soon as it is computed. found_inf: a float32 tensor (), as in torch's fused optimisers; a step changes
    nothing if it is 1. Raises ``ValueError`` for parameters of another half precision.
    """

    half_precision = True

    def __init__(
        self,
        params: list,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=True)
        self.sums: dict[Tensor, Tensor] = {}
        this = weakref.ref(self)

        def take(parameter: Tensor) -> None:
            if (optimizer := this()) is not None:
                optimizer._add(parameter)

        for parameter in chain.from_iterable(group["params"] for group in self.param_groups):
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"trained weights are {parameter.dtype}: set dtype='bfloat16' or 'float32'")
            if parameter.dtype == torch.bfloat16:
                parameter.register_post_accumulate_grad_hook(take)

    def _add(self, parameter: Tensor) -> None:
        if parameter in self.sums:
            self.sums[parameter] += parameter.grad
        else:
            self.sums[parameter] = parameter.grad.float()
        parameter.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.sums:
                    self._step(parameter, group)
        return super().step(closure)  # updates only the float32 parameters: the others have no `grad`

    def _step(self, parameter: Tensor, group: dict) -> None:
        state, gradient = self.state[parameter], self.sums.pop(parameter)
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state |= dict(exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
            state["lower"] = torch.zeros_like(parameter, dtype=torch.int16)
        weight = join(parameter, state["lower"])
        adamw(
            [weight],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
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
        upper, lower = split(weight)
        parameter.copy_(upper)
        state["lower"] = lower

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.sums.clear()

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state. (torch alone would cast the state of a bfloat16 parameter to bfloat16.)"""
        super().load_state_dict(state_dict)
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for name, parameter in zip(names, parameters, strict=True):
            if parameter.dtype == torch.bfloat16 and name in state_dict["state"]:
                own = state_dict["state"][name]
                self.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in own.items()}
