"""The plan of `asvr.profiling.plan` as tables, and as JSON."""

import io
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asvr.profiling.plan import GB, Assumed, Cluster, InputPlan, LayoutPlan, StagePlan

WIDTH = 132
DAY = 86_400


def tables(stages: dict[str, StagePlan], inputs: InputPlan, cluster: Cluster, assumed: Assumed) -> str:
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False)  # names may hold brackets
    for line in _heads(cluster, assumed):
        console.print(line, highlight=False)
    for name, stage in stages.items():
        console.print("", _stage(name, stage, cluster), sep="\n", highlight=False)
    console.print("", _inputs(stages, inputs, cluster, assumed), sep="\n", highlight=False)
    return text.getvalue().rstrip()


def write_json(file: Path, stages: dict[str, StagePlan], inputs: InputPlan, cluster: Cluster, assumed: Assumed) -> None:
    whole = dict(
        cluster=asdict(cluster),
        assumed=asdict(assumed),
        stages={name: asdict(stage) for name, stage in stages.items()},
        inputs=asdict(inputs),
    )
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _heads(cluster: Cluster, assumed: Assumed) -> list[str]:
    return [
        f"{cluster.nodes} x {cluster.gpus} {cluster.card}, {assumed.samples:,} samples a stage, each one image and "
        f"{assumed.sample.text_tokens} text tokens. Counted from the config: parameters, FLOPs, bytes. FSDP2 with "
        "param_dtype='bfloat16' and reduce_dtype='float32', whatever the config's `parallel` says.",
        f"Assumed: {assumed.mfu:.0%} of the cards' peak; {cluster.link_gbs:g} GB/s into a card from its node, "
        f"{cluster.network_gbs:g} GB/s into a node from others; {cluster.disk_gbs:g} GB/s to the disk from a node; "
        f"{assumed.image_kb:g} kB an image. GB: 1e9 bytes.",
    ]


def _stage(name: str, stage: StagePlan, cluster: Cluster) -> Table:
    samples = stage.global_batch / cluster.cards
    table = Table(
        title=f"{name}: {stage.global_batch} samples a step, {samples:g} a card ({stage.tokens_per_card:,.0f} tokens "
        f"in {stage.micro_batches} micro-batch{'es' if stage.micro_batches > 1 else ''}); {stage.steps:,} steps",
        title_justify="left",
        caption_justify="left",
        caption=f"Products alone: {stage.compute:.3g} s a step. Checkpoint: {stage.checkpoint / GB:,.1f} GB, "
        f"{stage.checkpoint / GB / cluster.cards:.2f} GB a card when sharded; "
        f"{stage.checkpoint / cluster.nodes / (cluster.disk_gbs * GB):.0f} s to the disks of all nodes, "
        f"{stage.checkpoint / (cluster.disk_gbs * GB):.0f} s from one node (DDP)."
        + (" Some cards have no sample in a step: raise data.global_batch." if samples < 1 else ""),
    )
    table.add_column("a card, a step")
    for plan in stage.layouts:
        table.add_column(plan.layout.name + (" *" if plan is stage.best else ""), justify="right")
    rows = {
        "memory, GB": lambda p: f"{p.memory / GB:.1f}  {'fits' if p.fits else 'does NOT fit'}",
        "received in all, GB": lambda p: f"{p.link / GB:.1f}",
        "of it its share of the network's, GB": lambda p: f"{p.network / GB:.2f}",
        "step, s": lambda p: f"{p.seconds:.3g}  ({p.bound})",
        "samples/s, all cards": lambda p: f"{stage.global_batch / p.seconds:,.0f}",
        "whole stage, days": lambda p: f"{stage.steps * p.seconds / DAY:.2f}",
    }
    for label, cell in rows.items():
        table.add_row(label, *(cell(plan) for plan in stage.layouts))
    return table


def _inputs(stages: dict[str, StagePlan], inputs: InputPlan, cluster: Cluster, assumed: Assumed) -> Table:
    table = Table(
        title="Input side, for the fastest layout that fits (*)",
        title_justify="left",
        caption_justify="left",
        caption=f"A core of this machine opens and scales {inputs.images_per_core:.0f} images (JPEG, 640 x 480) a "
        f"second, measured now. Files: {assumed.samples * assumed.image_kb / 1e9:,.2f} TB. Cached codes: "
        f"{inputs.cached_codes / GB:,.0f} GB. Index of the records: {inputs.index / GB:.2f} GB, mapped, a node.",
    )
    for column in ("", *stages):
        table.add_column(column, justify="right" if column else "left")
    best: list[LayoutPlan | None] = [stage.best for stage in stages.values()]
    rates = [s.global_batch / b.seconds if b else None for s, b in zip(stages.values(), best, strict=True)]
    rows = {
        "images/s, all cards": lambda rate: f"{rate:,.0f}",
        "images/s, a card": lambda rate: f"{rate / cluster.cards:.1f}",
        "MB/s from the disk, a node": lambda rate: f"{rate / cluster.nodes * assumed.image_kb / 1000:,.0f}",
        "cores for decoding, a node": lambda rate: f"{rate / cluster.nodes / inputs.images_per_core:.1f}",
    }
    for label, cell in rows.items():
        table.add_row(label, *("nothing fits" if rate is None else cell(rate) for rate in rates))
    return table
