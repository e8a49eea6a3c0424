"""Which attention kernel runs: decided once a run, told in the log, one for LLM, vision tower and depth transformer.

Legend: ``B`` rows, ``M`` heads, ``T`` tokens in a row, ``K`` width of a head.

The rows of a packed batch hold several samples, each of which sees itself alone. No backend makes a ``T x T`` mask for
that: SDPA runs sample by sample, xformers and torch's variable-length attention get the lengths.
"""

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from asvr.data.batch import Segments
from asvr.models.attention_kernels import KERNELS, masked_sdpa
from asvr.models.visual_attention import AttentionRule

logger = logging.getLogger("asvr")

AUTO = "auto"
PREFIX = "asvr_"  # of the names under which transformers finds them
PROBE = [5, 8, 3]  # lengths that a kernel is tried with
# Packed rows of an LLM, with a sliding window too; rows of one length go to SDPA.
PROBES = (dict(width=128, window=None), dict(width=64, window=4))


def no_mask(like: Tensor) -> Tensor:
    """Stands for "causal, and the kernel knows which tokens belong together". transformers returns a mask with four
    dimensions as it is; without one it looks for packed samples in the position ids, which waits for the device."""
    return torch.empty(like.shape[0], 0, 0, 0, dtype=torch.bool, device=like.device)


def _interface(kernel: Callable) -> Callable:
    """A kernel as transformers calls it, (B, M, T, K) -> (B, T, M, K)."""

    def attend(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        segments: Segments | None = None,
        rule: AttentionRule | None = None,
        sliding_window: int | None = None,
        **kwargs,
    ):
        for name in ("softcap", "s_aux"):  # s_aux: a learned sink
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{type(module).__name__}: {name} of its attention is not supported by any kernel here"
                )
        ours = attention_mask is None or attention_mask.numel() == 0
        if dropout and (segments is not None or rule is not None or (ours and sliding_window is not None)):
            rows = "packed rows" if segments is not None else "a sliding window"
            rows = rows if rule is None else "visual tokens that see each other"
            raise ValueError(f"llm.arch.{_dropout_field(module, dropout)}={dropout}: not with {rows}, set it 0")
        if not ours or dropout:  # padding on the left, generation with a cache
            return sdpa_attention_forward(
                module, query, key, value, attention_mask if not ours else None, dropout, scaling, is_causal, **kwargs
            )
        if rule is not None:
            query, key, value = _same_dtype(query, key, value)
            return masked_sdpa(query, key, value, masks=rule.masks(sliding_window), scale=scaling), None
        causal = bool((is_causal if is_causal is not None else module.is_causal) and query.shape[2] > 1)
        window = sliding_window if causal else None
        query, key, value = _same_dtype(query, key, value)
        return kernel(query, key, value, segments=segments, causal=causal, window=window, scale=scaling), None

    return attend


def _dropout_field(module: nn.Module, dropout: float) -> str:
    """What a model's configuration calls the dropout of its attention: ``attn_pdrop`` in gpt2."""
    fields = {name: value for name, value in module.config.to_dict().items() if "drop" in name and value == dropout}
    return next((name for name in fields if "att" in name), next(iter(fields), "attention_dropout"))


def _same_dtype(*tensors: Tensor) -> list[Tensor]:
    """Under autocast rotations are float32 and make queries and keys so, which SDPA casts and other kernels refuse."""
    device, value = tensors[0].device.type, tensors[-1]
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else value.dtype
    return [tensor.to(dtype) for tensor in tensors]


for _name, _kernel in KERNELS.items():
    AttentionInterface.register(PREFIX + _name, _interface(_kernel))
    AttentionMaskInterface.register(PREFIX + _name, sdpa_mask)


def choose(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The kernel to use, and why. wanted: a kernel's name, or ``auto``. dtype: of the products in a training step.

    Raises ``ValueError`` where a kernel was asked for by name and does not work here.
    """
    if wanted not in (AUTO, *KERNELS):
        raise ValueError(f"runtime.attention={wanted!r}: expected one of {', '.join((AUTO, *KERNELS))}")
    if wanted != AUTO:
        problem = problem_of(wanted, device, dtype)
        if problem is not None:
            raise ValueError(f"runtime.attention={wanted!r}: {problem}; use 'auto' or 'sdpa'")
        return wanted, "the config asks for it"
    reasons = []
    for name in ("varlen", "xformers"):  # in the order of their speed, see benchmarks/README.md
        problem = problem_of(name, device, dtype)
        if problem is None:
            return name, "; ".join([*reasons, f"it works on {device} in {dtype}"])
        reasons.append(f"{name}: {problem}")
    return "sdpa", "; ".join(reasons)


def problem_of(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel cannot be used here, or None: it was tried on a few tokens and gave what SDPA gives."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return f"needs CUDA, this is {device.type}"
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        return "not installed (pip install -e '.[cuda]')"
    if name == "varlen" and dtype not in (torch.bfloat16, torch.float16):
        return f"needs bf16 or fp16, not {dtype}"
    try:
        difference = max(_probe(name, device, dtype, **case) for case in PROBES)
    except Exception as error:  # whatever a kernel that was built for something else raises
        return f"fails here ({' '.join(f'{type(error).__name__}: {error}'.split())[:1000]})"
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    return None if difference < limit else f"differs from SDPA by {difference:.1e} of the largest value"


def _probe(name: str, device: torch.device, dtype: torch.dtype, *, width: int, window: int | None) -> float:
    """The largest difference from SDPA in float32, of outputs and gradients with grouped heads, against the largest
    value."""
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, heads, sum(PROBE), width, device=device, generator=generator).to(dtype) for heads in (4, 2, 2)
    ]
    segments, results = Segments.of(PROBE).to(device), []
    for kernel, precision in ((KERNELS[name], dtype), (KERNELS["sdpa"], torch.float32)):
        leaves = [tensor.to(precision).requires_grad_() for tensor in inputs]
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            out = kernel(*leaves, segments=segments, causal=True, window=window, scale=None)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    return max(
        ((own.float() - other).abs().max() / other.abs().max()).item() for own, other in zip(*results, strict=True)
    )


def eager_only(config) -> str | None:
    """Why no kernel here computes the attention of a configuration, in words, or None. transformers' own ``eager``
    does. (Its ``sdpa`` leaves the soft caps of Gemma 2 out, and 5.17 would choose it.)"""
    cap = getattr(config, "attn_logit_softcapping", None)
    return None if cap is None else f"attn_logit_softcapping={cap} caps the logits of its attention, as no kernel does"


def use_attention(model: nn.Module, wanted: str, dtype: torch.dtype | None, device: torch.device | None = None) -> str:
    """Let every part of a `VLM` use the chosen kernel; say which and why. dtype: of autocast, or None. device: where
    the model will run; None: where it is."""
    name, why = choose(wanted, device or model.device, dtype or next(model.llm.parameters()).dtype)
    logger.info("attention: %s (%s)", name, why)
    set_kernel(model, name)
    if not getattr(model.llm, "own_kernels", True):
        logger.info("attention of the LLM: transformers' own (%s)", model.llm.model.config._attn_implementation)
    return name


def set_kernel(model: nn.Module, name: str) -> None:
    """Let every part of a model, or a part alone, use a kernel by its name."""
    for module in model.modules():
        if hasattr(module, "set_attn_implementation") and hasattr(module, "config"):
            if getattr(module, "_supports_sdpa", False) and eager_only(module.config) is None:
                module.set_attn_implementation(PREFIX + name)
        elif hasattr(module, "attention_kernel"):
            module.attention_kernel = KERNELS[name]


@lru_cache
def _uncompiled(kernel: Callable) -> Callable:
    return torch.compiler.disable(kernel)


def keep_kernels_uncompiled(model: nn.Module) -> None:
    """Have ``torch.compile`` stop in front of a kernel and go on behind it."""
    for name, kernel in KERNELS.items():
        AttentionInterface.register(PREFIX + name, _interface(_uncompiled(kernel)))
    for module in model.modules():
        if hasattr(module, "attention_kernel"):
            module.attention_kernel = _uncompiled(module.attention_kernel)
