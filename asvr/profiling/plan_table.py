"""Print the plan of `asvr.profiling.plan` as tables, or write it as JSON."""

import io
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asvr.flops.host_memory import HOST_USABLE, host_room
from asvr.profiling.plan import GB, Assumed, Cluster, InputPlan, LayoutPlan, StagePlan

WIDTH = 132
DAY = 86_400
ON_CPU = (
    "memory of the CPU, GB",
    "of a node together, GB",
    "copied to and from it, GB",
)  # rows for FSDP2's cpu_offload


def tables(stages: dict[str, StagePlan], inputs: InputPlan, cluster: Cluster, assumed: Assumed) -> str:
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False)  # names may hold brackets
    for line in _heads(cluster, assumed):
        console.print(line, highlight=False)
    if any(plan.on_cpu for stage in stages.values() for plan in stage.layouts):
        console.print(_host_memory(cluster), highlight=False)
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
        f"{cluster.nodes} x {cluster.gpus} {cluster.card}, {assumed.samples:,} samples in each stage, each with one "
        f"image and {assumed.sample.text_tokens} text tokens. Parameters, FLOPs and bytes are counted from the config. "
        "FSDP2 has param_dtype='bfloat16' and reduce_dtype='float32'. The config's `parallel` is ignored, except "
        "`cpu_offload`.",
        f"Assumed: {assumed.mfu:.0%} of the cards' peak; {cluster.link_gbs:g} GB/s into a card from its node, "
        f"{cluster.network_gbs:g} GB/s into a node from others; {cluster.host_gbs:g} GB/s between a card and the "
        f"CPU's memory; {cluster.disk_gbs:g} GB/s to the disk from a node; "
        f"{assumed.image_kb:g} kB for each image. GB: 1e9 bytes.",
    ]


def _host_memory(cluster: Cluster) -> str:
    room = host_room(cluster.host_memory)
    if room is None:
        return "This system does not say how much memory its CPU has (--host-memory), so it is not compared."
    whose = "as this machine (--host-memory changes it)" if cluster.host_memory is None else "by --host-memory"
    return f"The CPU of a node has {room / GB:,.1f} GB of memory, {whose}. States may fill {HOST_USABLE:.0%} of it."


def _stage(name: str, stage: StagePlan, cluster: Cluster) -> Table:
    samples = stage.global_batch / cluster.cards
    table = Table(
        title=f"{name}: {stage.global_batch} samples per step, {samples:g} on a card "
        f"({stage.tokens_per_card:,.0f} tokens in {stage.micro_batches} "
        f"micro-batch{'es' if stage.micro_batches > 1 else ''}); {stage.steps:,} steps",
        title_justify="left",
        caption_justify="left",
        caption=f"Matrix products alone take {stage.compute:.3g} s per step. A checkpoint has "
        f"{stage.checkpoint / GB:,.1f} GB, {stage.checkpoint / GB / cluster.cards:.2f} GB on each card when sharded. "
        f"Writing it takes {stage.checkpoint / cluster.nodes / (cluster.disk_gbs * GB):.0f} s from all nodes, or "
        f"{stage.checkpoint / (cluster.disk_gbs * GB):.0f} s from one node (DDP)."
        + (" Some cards have no sample in a step: raise data.global_batch." if samples < 1 else ""),
    )
    table.add_column("per card and step")
    for plan in stage.layouts:
        table.add_column(plan.layout.name + (" *" if plan is stage.best else ""), justify="right")
    rows = {
        "memory, GB": lambda p: f"{p.memory / GB:.1f}  {'fits' if p.fits else 'does NOT fit'}",
        "received, GB": lambda p: f"{p.link / GB:.1f}",
        "of this from other nodes, GB": lambda p: f"{p.network / GB:.2f}",
        ON_CPU[0]: lambda p: f"{p.on_cpu / GB:.1f}",
        ON_CPU[1]: lambda p: _on_host(p, cluster),
        ON_CPU[2]: lambda p: f"{p.copied / GB:.1f}",
        "step, s": lambda p: f"{p.seconds:.3g}  ({p.bound})",
        "samples/s, all cards": lambda p: f"{stage.global_batch / p.seconds:,.0f}",
        "whole stage, days": lambda p: f"{stage.steps * p.seconds / DAY:.2f}",
    }
    if not any(plan.on_cpu for plan in stage.layouts):
        rows = {label: cell for label, cell in rows.items() if label not in ON_CPU}
    for label, cell in rows.items():
        table.add_row(label, *(cell(plan) for plan in stage.layouts))
    return table


def _on_host(plan: LayoutPlan, cluster: Cluster) -> str:
    if not plan.on_cpu:  # DDP offloads nothing
        return "-"
    return f"{plan.on_cpu * cluster.gpus / GB:.1f}  {'fits' if plan.fits_host else 'does NOT fit'}"


def _inputs(stages: dict[str, StagePlan], inputs: InputPlan, cluster: Cluster, assumed: Assumed) -> Table:
    table = Table(
        title="Data loading, for the fastest layout that fits (*)",
        title_justify="left",
        caption_justify="left",
        caption=f"One core of this machine opens and scales {inputs.images_per_core:.0f} images (JPEG, 640 x 480) per "
        f"second, measured now. Files: {assumed.samples * assumed.image_kb / 1e9:,.2f} TB. Cached codes: "
        f"{inputs.cached_codes / GB:,.0f} GB. Index of the records: {inputs.index / GB:.2f} GB on each node, mapped.",
    )
    for column in ("", *stages):
        table.add_column(column, justify="right" if column else "left")
    best: list[LayoutPlan | None] = [stage.best for stage in stages.values()]
    rates = [s.global_batch / b.seconds if b else None for s, b in zip(stages.values(), best, strict=True)]
    rows = {
        "images/s, all cards": lambda rate: f"{rate:,.0f}",
        "images/s, per card": lambda rate: f"{rate / cluster.cards:.1f}",
        "MB/s from the disk, per node": lambda rate: f"{rate / cluster.nodes * assumed.image_kb / 1000:,.0f}",
        "cores for decoding, per node": lambda rate: f"{rate / cluster.nodes / inputs.images_per_core:.1f}",
    }
    for label, cell in rows.items():
        table.add_row(label, *("nothing fits" if rate is None else cell(rate) for rate in rates))
    return table
