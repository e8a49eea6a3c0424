"""Attention kernels against plain SDPA, forward and backward: the LLM's packed rows, with grouped heads too, the
vision tower and the depth transformer.

python benchmarks/attention.py [--device cuda] [--dtype bfloat16] [--out FILE]

"padded" is SDPA on rows padded to the longest with a causal mask that leaves padding out, as transformers makes it.
Every kernel is measured in turn on the same samples, packed. Rows of the vision tower and of the depth transformer are
all of one length. There the model takes SDPA, and the other kernels get the same rows packed, to see what they would
take. "sdpa, FA3" is SDPA with FlashAttention-3 behind it. For the eight depths of the depth transformer there are two
more ways: "products" are plain matrix products with a mask, and "sums, compiled" (on CUDA) are sums over the width that
torch.compile fuses. Kernels that do not work here are listed with the reason.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

from asvr.commands.cli import run_tool

CALL = dict(window=None, scale=None)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import torch

    from asvr.base.text import table
    from asvr.data.batch import IMAGE_TOKEN
    from asvr.models.attention import problem_of
    from asvr.models.attention_kernels import KERNELS
    from asvr.models.flash_attention import switched
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.report import save
    from asvr.profiling.synthetic import SyntheticSamples
    from asvr.profiling.worker import Clock
    from asvr.recipe.build import build_device

    device, dtype = build_device(args.device), getattr(torch, args.dtype)
    samples = SyntheticSamples(num_image_tokens=729, max_length=2048, vocab_size=32000)
    items = [samples[i]["input_ids"] for i in range(args.samples)]
    lengths = [len(ids) + 728 * ids.count(IMAGE_TOKEN) for ids in items]
    kernels = {name: problem_of(name, device, dtype) for name in KERNELS}
    for name, problem in kernels.items():
        if problem:
            print(f"{name}: {problem}")
    working = [name for name, problem in kernels.items() if problem is None]
    rows = _rectangular(args, lengths, working, device, dtype)
    for keys in sorted({args.heads, max(1, args.heads // 4)}, reverse=True):
        seconds = {name: [] for name in ("padded", *working)}
        for _ in range(1 + args.rounds):
            for name in seconds:
                run = _padded if name == "padded" else _packed
                sizes = (lengths, args.heads, keys, args.width)
                with switched(name):
                    seconds[name].append(run(KERNELS.get(name), *sizes, device, dtype, Clock))
        base = statistics.median(seconds["padded"][1:])
        for name, values in seconds.items():
            middle = statistics.median(values[1:])
            rows.append(
                dict(
                    part="LLM",
                    kernel=name,
                    heads=args.heads,
                    key_heads=keys,
                    **_spread(values[1:]),
                    speedup=base / middle,
                )
            )
    result = dict(machine=machine(device), dtype=args.dtype, lengths=lengths, rows=rows)
    text = f"{in_words(result['machine'])}; {args.dtype}, {len(lengths)} samples of {lengths} tokens\n\n"
    cells = [
        [row["part"], row["kernel"], f"{row['heads']} / {row['key_heads']}"]
        + [f"{1000 * row['seconds']:.2f} ({1000 * row['least']:.2f} to {1000 * row['most']:.2f})"]
        + [f"{row['speedup']:.2f}"]
        for row in rows
    ]
    header = ["part", "kernel", "heads / key heads", "ms, forward and backward", "padded (tower, depth: sdpa) / it"]
    text += table(header, cells)
    save(args.out, result, text)


def _rectangular(args: argparse.Namespace, lengths: list[int], working: list[str], device, dtype) -> list[dict]:
    """Tower and depth transformer: rows of one length. SigLIP-SO400M's heads, and the released head's."""
    import torch

    from asvr.data.batch import Segments
    from asvr.models.attention_kernels import KERNELS
    from asvr.models.flash_attention import IMPLEMENTATIONS, implementation_of, switched
    from asvr.profiling.worker import Clock

    # Other implementations of flash attention change SDPA too.
    sides = {name: (name, name == "sdpa") for name in working}
    sides |= {f"sdpa, {implementation_of(name)}": (name, True) for name in working if name in IMPLEMENTATIONS}
    images, found = len(lengths), []
    cases = dict(tower=(images, 729, 16, 72, False), depth=(images * 729, 8, 16, 128, True))
    if device.type == "cpu":  # the proportions of configs/benchmarks/small_asvr.py
        cases = dict(tower=(images, 729, 5, 32, False), depth=(images * 729, 8, 4, 64, True))
    short = {"products": _products} | ({"sums, compiled": torch.compile(_sums)} if device.type == "cuda" else {})
    for part, (count, tokens, heads, width, causal) in cases.items():
        own = sides | ({name: (name, True) for name in short} if part == "depth" else {})
        seconds: dict[str, list] = {side: [] for side in own}
        for _ in range(1 + args.rounds):
            for side, (name, dense) in own.items():
                shape = (count, tokens) if dense else (1, count * tokens)
                segments = None if dense else Segments.of([tokens] * count).to(device)
                q, k, v = _inputs(*shape, heads, heads, width, device, dtype)
                kernel = short[name] if name in short else partial(KERNELS[name], segments=segments, **CALL)
                with switched(name):
                    timer = Clock(device)
                    out = kernel(q, k, v, causal=causal)
                    out.backward(out.detach())
                    timer.stop("all")
                    seconds[side].append(timer.seconds()["all"])
        middle = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        found += [
            dict(part=part, kernel=name, heads=heads, key_heads=heads)
            | dict(_spread(values[1:]), speedup=middle["sdpa"] / middle[name])
            for name, values in seconds.items()
        ]
    return found


def _products(q, k, v, *, causal: bool):
    """Attention over short rows as two products."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores + _mask(scores, causal)).softmax(-1).to(v.dtype) @ v


def _sums(q, k, v, *, causal: bool):
    """The same without products of matrices, so that a compiler makes one kernel of it."""
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1, dtype=q.dtype) * q.shape[-1] ** -0.5
    weights = (scores + _mask(scores, causal)).softmax(-1).to(v.dtype)
    return (weights[..., None] * v[..., None, :, :]).sum(-2)


def _mask(scores, causal: bool):
    mask = scores.new_zeros(scores.shape[-2:])
    return mask.fill_(float("-inf")).triu(1) if causal else mask


def _spread(seconds: list[float]) -> dict[str, float]:
    return dict(seconds=statistics.median(seconds), least=min(seconds), most=max(seconds))


def _inputs(rows: int, tokens: int, heads: int, keys: int, width: int, device, dtype) -> list:
    import torch

    return [
        torch.randn(rows, count, tokens, width, device=device, dtype=dtype).requires_grad_()
        for count in (heads, keys, keys)
    ]


def _packed(kernel, lengths, heads, keys, width, device, dtype, clock) -> float:
    from asvr.data.batch import Segments

    inputs, segments = _inputs(1, sum(lengths), heads, keys, width, device, dtype), Segments.of(lengths).to(device)
    timer = clock(device)
    out = kernel(*inputs, segments=segments, causal=True, window=None, scale=None)
    out.backward(out.detach())
    timer.stop("all")
    return timer.seconds()["all"]


def _padded(_, lengths, heads, keys, width, device, dtype, clock) -> float:
    import torch
    import torch.nn.functional as F

    longest = max(lengths)
    q, k, v = _inputs(len(lengths), longest, heads, keys, width, device, dtype)
    real = torch.arange(longest, device=device)[None] < torch.tensor(lengths, device=device)[:, None]
    mask = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()[None, None] & real[:, None, None]
    timer = clock(device)
    groups = heads // keys
    k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out.backward(out.detach())
    timer.stop("all")
    return timer.seconds()["all"]


if __name__ == "__main__":
    run_tool(main)
