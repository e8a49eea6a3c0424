"""The choice of the attention kernel. It is made and logged once in a run, for LLM, vision tower and depth transformer.

Legend: ``B`` rows, ``M`` heads, ``T`` tokens in a row, ``K`` width of a head.

A row of a packed batch holds several samples, and each sample sees only itself. This takes no ``T x T`` mask: SDPA runs
sample by sample, and xformers and torch's variable-length attention get the lengths of the samples.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from asvr.data.batch import Segments
from asvr.models.attention_kernels import KERNELS, masked_sdpa
from asvr.models.attention_sizes import head_widths
from asvr.models.flash_attention import (
    IMPLEMENTATIONS,
    implementation_of,
    problem_of_implementation,
    switch_to,
    switched,
    without_flash,
)
from asvr.models.visual_attention import AttentionRule

logger = logging.getLogger("asvr")

AUTO = "auto"
PREFIX = "asvr_"  # of the names under which our kernels are registered with transformers
PROBE = [5, 8, 3]  # lengths of the samples with which a kernel is tried
WINDOWS = (None, 4)  # kernels are tried with packed rows, without and with a sliding window; other rows use SDPA
USUAL = ((64, 64), (128, 128))  # widths of heads (query and key, value) of an LLM that does not tell its own
WIDTHS_OF_SDPA = ((128, 128), (72, 72))  # of the depth transformer's and SigLIP's heads


def no_mask(like: Tensor) -> Tensor:
    """Return an empty mask. It means: attention is causal, and the kernel knows the packed samples.

    transformers passes a mask with four dimensions on unchanged. Without a mask it would look for packed samples in the
    position ids, and this would make the CPU wait for the device."""
    return torch.empty(like.shape[0], 0, 0, 0, dtype=torch.bool, device=like.device)


def _interface(kernel: Callable) -> Callable:
    """Wrap a kernel in the interface of transformers, (B, M, T, K) -> (B, T, M, K)."""

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
                raise ValueError(f"{type(module).__name__}: its attention uses {name}, which no kernel here supports")
        ours = attention_mask is None or attention_mask.numel() == 0
        if dropout and (segments is not None or rule is not None or (ours and sliding_window is not None)):
            rows = "packed rows" if segments is not None else "a sliding window"
            rows = rows if rule is None else "visual tokens that see each other"
            raise ValueError(
                f"llm.arch.{_dropout_field(module, dropout)}={dropout}: does not work with {rows}, set it to 0"
            )
        if not ours or dropout:  # such as rows padded on the left, or generation with a cache
            mask = attention_mask if not ours else None
            with without_flash(dropout):
                return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, is_causal, **kwargs)
        if rule is not None:
            query, key, value = _same_dtype(query, key, value)
            return masked_sdpa(query, key, value, masks=rule.masks(sliding_window), scale=scaling), None
        causal = bool((is_causal if is_causal is not None else module.is_causal) and query.shape[2] > 1)
        window = sliding_window if causal else None
        query, key, value = _same_dtype(query, key, value)
        return kernel(query, key, value, segments=segments, causal=causal, window=window, scale=scaling), None

    return attend


def _dropout_field(module: nn.Module, dropout: float) -> str:
    """Return the config field of the attention's dropout, such as ``attn_pdrop`` of gpt2."""
    fields = {name: value for name, value in module.config.to_dict().items() if "drop" in name and value == dropout}
    return next((name for name in fields if "att" in name), next(iter(fields), "attention_dropout"))


def _same_dtype(*tensors: Tensor) -> list[Tensor]:
    """Cast query, key and value to one dtype.

    Under autocast, rotary embeddings are float32, and so queries and keys are too. SDPA casts them, but other kernels
    refuse them."""
    device, value = tensors[0].device.type, tensors[-1]
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else value.dtype
    return [tensor.to(dtype) for tensor in tensors]


for _name, _kernel in KERNELS.items():
    AttentionInterface.register(PREFIX + _name, _interface(_kernel))
    AttentionMaskInterface.register(PREFIX + _name, sdpa_mask)


def choose(
    asked: str, device: torch.device, dtype: torch.dtype, widths: Sequence[tuple[int, int]] = ()
) -> tuple[str, str]:
    """Return the kernel to use, and why.

    asked: a kernel's name, or ``auto``. dtype: dtype of the matrix products. widths: all widths of the LLM's heads, see
    `asvr.models.attention_sizes.head_widths`. The kernel works with each of them. Torch's flash attention is switched
    to the implementation that the kernel needs, for the whole process.

    Raises ``ValueError`` if the config names a kernel that does not work here.
    """
    if asked not in (AUTO, *KERNELS):
        raise ValueError(f"runtime.attention={asked!r}: expected one of {', '.join((AUTO, *KERNELS))}")
    if asked == AUTO:
        name, why = _fastest(device, dtype, widths)
    else:
        problem = problem_of(asked, device, dtype, widths)
        if problem is not None:
            raise ValueError(f"runtime.attention={asked!r}: {problem}; use 'auto' or 'sdpa'")
        name, why = asked, "the config asks for it"
    switch_to(implementation_of(name))
    return name, why


def _fastest(device: torch.device, dtype: torch.dtype, widths: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Return the first kernel that works here, and why. They are tried in the order of speed (benchmarks/README.md)."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None
    flash = {9: ("varlen_fa3", "varlen_fa4"), 10: ("varlen_fa4",)}.get(major, ())
    reasons = []
    for name in (*flash, "varlen", "xformers"):
        problem = problem_of(name, device, dtype, widths)
        if problem is None:
            return name, "; ".join([*reasons, f"it works on {device} in {dtype}"])
        reasons.append(f"{name}: {problem}")
    return "sdpa", "; ".join(reasons)


def problem_of(
    name: str, device: torch.device, dtype: torch.dtype, widths: Sequence[tuple[int, int]] = ()
) -> str | None:
    """Return why a kernel cannot be used here. None: on a few tokens it gave the same results as SDPA.

    widths: see `choose`."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return f"needs CUDA, this is {device.type}"
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        return "not installed (pip install 'asvr[cuda]')"
    if name.startswith("varlen") and dtype not in (torch.bfloat16, torch.float16):
        return f"needs bf16 or fp16, not {dtype}"
    flash = name in IMPLEMENTATIONS
    if flash and (problem := problem_of_implementation(name, device)) is not None:
        return problem
    cases = [dict(width=width, window=window) for width in widths or USUAL for window in WINDOWS]
    if flash:  # other implementations of flash attention change SDPA too
        alone = dict.fromkeys([*widths, *WIDTHS_OF_SDPA])
        cases += [dict(width=width, window=None, packed=False) for width in alone]
    limit, heads = 1e-4 if dtype == torch.float32 else 3e-2, ""
    try:
        with switched(name):
            for case in cases:
                heads = _with_heads(*case["width"])
                difference = _probe(name, device, dtype, **case)
                if not difference < limit:
                    return f"differs from SDPA by {difference:.1e} of the largest value{heads}"
    except Exception as error:  # a kernel built for another machine may raise anything
        return f"fails here{heads} ({' '.join(f'{type(error).__name__}: {error}'.split())[:1000]})"
    return None


def _with_heads(key: int, value: int) -> str:
    return f" with heads of width {key}" + ("" if key == value else f" and values of width {value}")


def _probe(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    width: tuple[int, int],
    window: int | None,
    packed: bool = True,
) -> float:
    """Return the largest difference from SDPA in float32, relative to the largest value.

    width: of a head of query and key, and of the value. Outputs and gradients are compared, with grouped heads."""
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, heads, sum(PROBE), own, device=device, generator=generator).to(dtype)
        for heads, own in ((4, width[0]), (2, width[0]), (2, width[1]))
    ]
    segments, results = Segments.of(PROBE).to(device) if packed else None, []
    for kernel, precision in ((KERNELS[name], dtype), (KERNELS["sdpa"], torch.float32)):
        leaves = [tensor.to(precision).requires_grad_() for tensor in inputs]
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            out = kernel(*leaves, segments=segments, causal=True, window=window, scale=None)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    return max(
        ((own.float() - other).abs().max() / other.abs().max()).item() for own, other in zip(*results, strict=True)
    )


def eager_only(config) -> str | None:
    """Return why a model needs transformers' own ``eager`` attention, as text. None: our kernels can be used.

    (transformers 5.17 would choose its ``sdpa`` for Gemma 2, which leaves the soft caps out.)"""
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap is None:
        return None
    return f"attn_logit_softcapping={cap} caps the logits of its attention, which no kernel supports"


def use_attention(model: nn.Module, asked: str, dtype: torch.dtype | None, device: torch.device | None = None) -> str:
    """Choose a kernel, log it, and use it in every part of a `VLM`.

    asked: see `choose`. dtype: dtype of autocast, or None. device: the device on which the model will run; None: the
    device of the model."""
    dtype = dtype or next(model.llm.parameters()).dtype
    name, why = choose(asked, device or model.device, dtype, widths_of(model.llm))
    logger.info("attention: %s (%s)", name, why)
    set_kernel(model, name)
    if not getattr(model.llm, "own_kernels", True):
        logger.info("attention of the LLM: transformers' own (%s)", model.llm.model.config._attn_implementation)
    return name


def widths_of(llm: nn.Module) -> list[tuple[int, int]]:
    """All widths of an LLM's heads. Empty for an LLM of a user's own that has no configuration of transformers."""
    config = getattr(getattr(llm, "model", None), "config", None)
    return [] if config is None else head_widths(config)


def set_kernel(model: nn.Module, name: str) -> None:
    """Use the kernel of this name in a model or in a part of it."""
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
    """Leave the kernels out of what ``torch.compile`` compiles."""
    for name, kernel in KERNELS.items():
        AttentionInterface.register(PREFIX + name, _interface(_uncompiled(kernel)))
    for module in model.modules():
        if hasattr(module, "attention_kernel"):
            module.attention_kernel = _uncompiled(module.attention_kernel)
