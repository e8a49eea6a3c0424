"""Synthetic VQGAN checkpoints in each documented layout, and what they compute, written out line by line."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS, LATENT = 32, 32


@dataclass(frozen=True)
class Layout:
    """mult: channel multipliers, finest level first. attention: levels with it. codes: (count, width)."""

    kind: str
    mult: tuple[int, ...] = (1, 1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    codes: tuple[int, int] = (50, 16)
    depth: int = 1
    prefix: str = ""

    def down(self, level: int) -> tuple[str, str]:
        if self.kind == "llamagen":
            return f"encoder.conv_blocks.{level}", "res"
        return f"encoder.down.{level}", "block"

    def up(self, level: int) -> tuple[str, str]:
        coarsest_first = len(self.mult) - 1 - level
        if self.kind == "llamagen":
            return f"decoder.conv_blocks.{coarsest_first}", "res"
        return f"decoder.up.{coarsest_first if self.kind == 'janus' else level}", "block"

    def mid(self, part: str) -> tuple[str, str, str]:
        names = ("0", "1", "2") if self.kind == "llamagen" else ("block_1", "attn_1", "block_2")
        return tuple(f"{part}.mid.{name}" for name in names)

    @property
    def codebook(self) -> str:
        return "quantizer.codebooks.0.weight" if self.kind == "rqvae" else "quantize.embedding.weight"


class Maker:
    """Random tensors by name."""

    def __init__(self, seed: int = 0):
        self.tensors, self.generator = {}, torch.Generator().manual_seed(seed)

    def add(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.tensors[name] = scale * torch.randn(*shape, generator=self.generator)

    def conv(self, name: str, inside: int, out: int, side: int = 3) -> None:
        self.add(f"{name}.weight", out, inside, side, side, scale=(inside * side * side) ** -0.5)
        self.add(f"{name}.bias", out, scale=0.1)

    def norm(self, name: str, width: int) -> None:
        self.add(f"{name}.weight", width, scale=0.1)
        self.tensors[f"{name}.weight"] += 1
        self.add(f"{name}.bias", width, scale=0.1)

    def block(self, name: str, inside: int, out: int, side: int = 3) -> None:
        self.norm(f"{name}.norm1", inside)
        self.conv(f"{name}.conv1", inside, out, side)
        self.norm(f"{name}.norm2", out)
        self.conv(f"{name}.conv2", out, out)
        if inside != out:
            self.conv(f"{name}.nin_shortcut", inside, out, 1)

    def attention(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)


def decoder(make: Maker, layout: Layout, latent: int = LATENT) -> None:
    width = CHANNELS * layout.mult[-1]
    make.conv("decoder.conv_in", latent, width)
    _middle(make, layout, "decoder", width)
    for level in reversed(range(len(layout.mult))):
        name, block = layout.up(level)
        for i in range(layout.blocks + 1):
            make.block(f"{name}.{block}.{i}", width, CHANNELS * layout.mult[level])
            width = CHANNELS * layout.mult[level]
            if level in layout.attention:
                make.attention(f"{name}.attn.{i}", width)
        if level:
            make.conv(f"{name}.upsample.conv", width, width)
    make.norm("decoder.norm_out", width)
    make.conv("decoder.conv_out", width, 3)


def checkpoint(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """A whole VQGAN."""
    make, width = Maker(seed), CHANNELS
    make.conv("encoder.conv_in", 3, CHANNELS)
    for level, multiplier in enumerate(layout.mult):
        name, block = layout.down(level)
        for i in range(layout.blocks):
            make.block(f"{name}.{block}.{i}", width, CHANNELS * multiplier)
            width = CHANNELS * multiplier
            if level in layout.attention:
                make.attention(f"{name}.attn.{i}", width)
        if level < len(layout.mult) - 1:
            make.conv(f"{name}.downsample.conv", width, width)
    _middle(make, layout, "encoder", width)
    make.norm("encoder.norm_out", width)
    make.conv("encoder.conv_out", width, LATENT)
    count, code_width = layout.codes
    make.conv("quant_conv", LATENT, code_width, 1)
    make.conv("post_quant_conv", code_width, LATENT, 1)
    decoder(make, layout)
    make.add(layout.codebook, count + (layout.kind == "rqvae"), code_width, scale=0.5)
    tensors = make.tensors
    if layout.kind == "rqvae":
        tensors[layout.codebook][-1] = 0  # padding: nearest to small residuals, if it were searched
        for i in range(layout.depth):
            tensors[f"quantizer.codebooks.{i}.weight"] = tensors[layout.codebook].clone()
            tensors[f"quantizer.codebooks.{i}.cluster_size_ema"] = torch.ones(count)
            tensors[f"quantizer.codebooks.{i}.embed_ema"] = torch.ones(count, code_width)
    if layout.kind == "llamagen":
        tensors["quantize.codebook_used"] = torch.zeros(99)
    if layout.kind == "taming":
        tensors["loss.discriminator.main.0.weight"] = torch.zeros(4)
    return {layout.prefix + name: tensor for name, tensor in tensors.items()}


def _middle(make: Maker, layout: Layout, part: str, width: int) -> None:
    first, attention, last = layout.mid(part)
    make.block(first, width, width)
    make.attention(attention, width)
    make.block(last, width, width)


def run_conv(w: dict, name: str, x: Tensor, **options) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def run_norm(w: dict, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def run_block(w: dict, name: str, x: Tensor) -> Tensor:
    h = run_norm(w, f"{name}.norm1", x)
    side = w[f"{name}.conv1.weight"].shape[-1]
    h = run_conv(w, f"{name}.conv1", h * h.sigmoid(), padding=side // 2)
    h = run_norm(w, f"{name}.norm2", h)
    h = run_conv(w, f"{name}.conv2", h * h.sigmoid(), padding=1)
    return h + (run_conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def run_attention(w: dict, name: str, x: Tensor) -> Tensor:
    h = run_norm(w, f"{name}.norm", x)
    q, k, v = (run_conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)  # (I, queries, keys)
    return x + run_conv(w, f"{name}.proj_out", (v @ weights.transpose(1, 2)).view_as(x))


def run_encoder(w: dict, layout: Layout, pixels: Tensor) -> Tensor:
    x = run_conv(w, "encoder.conv_in", pixels, padding=1)
    for level in range(len(layout.mult)):
        name, block = layout.down(level)
        for i in range(layout.blocks):
            x = run_block(w, f"{name}.{block}.{i}", x)
            if level in layout.attention:
                x = run_attention(w, f"{name}.attn.{i}", x)
        if level < len(layout.mult) - 1:
            x = run_conv(w, f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = _run_middle(w, layout, "encoder", x)
    x = run_norm(w, "encoder.norm_out", x)
    return run_conv(w, "encoder.conv_out", x * x.sigmoid(), padding=1)


def run_decoder(w: dict, layout: Layout, z: Tensor) -> Tensor:
    x = _run_middle(w, layout, "decoder", run_conv(w, "decoder.conv_in", z, padding=1))
    for level in reversed(range(len(layout.mult))):
        name, block = layout.up(level)
        for i in range(layout.blocks + 1):
            x = run_block(w, f"{name}.{block}.{i}", x)
            if level in layout.attention:
                x = run_attention(w, f"{name}.attn.{i}", x)
        if level:
            x = run_conv(w, f"{name}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    x = run_norm(w, "decoder.norm_out", x)
    return run_conv(w, "decoder.conv_out", x * x.sigmoid(), padding=1)


def _run_middle(w: dict, layout: Layout, part: str, x: Tensor) -> Tensor:
    first, attention, last = layout.mid(part)
    return run_block(w, last, run_attention(w, attention, run_block(w, first, x)))


def straight_line(tensors: dict, layout: Layout, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (I, N, D) and the reconstruction, not clamped."""
    w = {name.removeprefix(layout.prefix): tensor for name, tensor in tensors.items()}
    z = run_conv(w, "quant_conv", run_encoder(w, layout, pixels))
    book = w[layout.codebook][: layout.codes[0]]
    rows = z.permute(0, 2, 3, 1).flatten(0, 2)
    if layout.kind in ("llamagen", "janus"):
        rows, book = rows / rows.norm(dim=1, keepdim=True), book / book.norm(dim=1, keepdim=True)
    codes, chosen = [], torch.zeros_like(rows)
    for _ in range(layout.depth):
        code = ((rows - chosen)[:, None] - book[None]).square().sum(-1).argmin(1)
        codes.append(code)
        chosen = chosen + book[code]
    z = chosen.view(len(pixels), *z.shape[2:], -1).permute(0, 3, 1, 2)
    pixels_out = run_decoder(w, layout, run_conv(w, "post_quant_conv", z))
    return torch.stack(codes, 1).view(len(pixels), -1, layout.depth), pixels_out
