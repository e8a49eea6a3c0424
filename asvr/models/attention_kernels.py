"""Attention kernels of different libraries, all with the same arguments.

query is (B, M, T, K). key and value may have fewer heads, a divisor of M. The result is (B, T, M, K). segments: the
samples of a packed row; None: every row is one sample. window: the number of tokens that a token sees, itself included;
None: no limit.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.data.batch import Segments


def sdpa(query, key, value, *, segments: Segments | None, causal: bool, window: int | None, scale: float | None):
    """torch's scaled_dot_product_attention, sample by sample."""
    if segments is None:
        return _sdpa(query, key, value, causal=causal, window=window, scale=scale).transpose(1, 2)
    samples = zip(*(tensor.split(segments.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat(
        [_sdpa(*sample, causal=causal, window=window, scale=scale) for sample in samples], dim=2
    ).transpose(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, scale: float | None):
    mask, length = None, query.shape[2]
    if window is not None and window < length:
        causal, mask = False, torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    grouped = bool(key.shape[1] != query.shape[1])  # bool(): sizes are tensors while fvcore traces
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def masked_sdpa(query, key, value, *, masks: list[Tensor], scale: float | None):
    """torch's scaled_dot_product_attention with masks, see `asvr.models.visual_attention.AttentionRule.masks`.

    A packed row has one mask for each sample. The other libraries here take no such masks."""
    key, value = _repeated(query, key, value)  # kernels for grouped heads take no mask
    lengths = [mask.shape[-1] for mask in masks]
    samples = zip(masks, *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    parts = [F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale) for mask, q, k, v in samples]
    return torch.cat(parts, dim=2).transpose(1, 2)


def xformers(query, key, value, *, segments: Segments | None, causal: bool, window: int | None, scale: float | None):
    """xformers' memory-efficient attention. A packed row gets a block-diagonal causal mask.

    Rows without packing and without a window use SDPA, which is faster for them (`benchmarks/attention.py`)."""
    if segments is None and (window is None or window >= query.shape[2]):
        return sdpa(query, key, value, segments=segments, causal=causal, window=window, scale=scale)
    from xformers.ops import memory_efficient_attention

    lengths = None if segments is None else tuple(segments.lengths)
    bias = _xformers_bias(lengths, causal, window, query.device)
    key, value = _repeated(query, key, value)  # its kernels for grouped heads have no backward pass
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return memory_efficient_attention(q, k, v, attn_bias=bias, scale=scale)


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value with as many heads as the query."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else tuple(t.repeat_interleave(groups, dim=1) for t in (key, value))


@lru_cache(maxsize=8)
def _xformers_bias(lengths: tuple | None, causal: bool, window: int | None, device: torch.device):
    """Return the mask that xformers needs. It is cached, because all layers need the same one."""
    from xformers.ops.fmha import attn_bias as biases

    if lengths is not None:
        kind = biases.BlockDiagonalCausalMask if causal else biases.BlockDiagonalMask
        bias = kind.from_seqlens(lengths, device=device)
        return bias.make_local_attention(window) if window is not None and window < max(lengths) else bias
    assert causal, "a window needs causal attention"
    return biases.LocalAttentionFromBottomRightMask(window_left=window - 1, window_right=0)


def varlen(query, key, value, *, segments: Segments | None, causal: bool, window: int | None, scale: float | None):
    """torch's variable-length attention, which is a flash attention. Rows that are not packed use SDPA.

    `asvr.models.flash_attention` decides which implementation of flash attention torch calls."""
    if segments is None:
        return sdpa(query, key, value, segments=segments, causal=causal, window=window, scale=scale)
    from torch.nn.attention.varlen import varlen_attn

    key, value = _repeated(query, key, value)  # torch 2.11 has no enable_gqa
    q, k, v = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    longest = max(segments.lengths)
    sides = (-1 if window is None else window - 1, 0) if causal else (-1, -1)
    out = varlen_attn(q, k, v, segments.offsets, segments.offsets, longest, longest, scale=scale, window_size=sides)
    return out.unsqueeze(0)


KERNELS = dict(sdpa=sdpa, xformers=xformers, varlen=varlen, varlen_fa3=varlen, varlen_fa4=varlen)
