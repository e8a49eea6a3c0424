"""Plan a training on many GPUs: memory, communication, checkpoints and data loading, from the model's sizes.

Parameters, FLOPs and bytes are counted from the config. The speeds of links, disks and cards are assumptions. They are
in `Cluster` and `Assumed`, and are printed with the plan.
"""

import io
import time
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from asvr.data.transforms import ImageTransform
from asvr.flops.count import Sample, forward_parts, training_factor
from asvr.flops.host_memory import fits_host, host_room
from asvr.flops.memory import USABLE, MemoryPlan, in_one_line, plan_memory
from asvr.flops.sharded import FLOAT, HALF, Sizes, copied_offloaded, gathered_bytes
from asvr.flops.states import held_bytes
from asvr.flops.step import peak_flops
from asvr.models.trainable import trained_shares
from asvr.recipe.build import pack_limits
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage

GB = 10**9
CARD_BYTES = {"A100": 79.1 * 2**30, "H100": 79.1 * 2**30, "H200": 139.8 * 2**30}


@dataclass(frozen=True)
class Cluster:
    """A cluster of nodes with ``gpus`` cards each.

    card: a key of `CARD_BYTES`. link_gbs: GB/s that a card receives from the other cards of its node. network_gbs: GB/s
    that a node receives from other nodes. host_gbs: GB/s between a card and the CPU's memory. disk_gbs: GB/s that a
    node writes. host_memory: GB of the CPU's memory of a node; None: as this machine has. Raises
    ``ValueError`` for an unknown card, or a speed that is not above 0.
    """

    nodes: int
    gpus: int
    card: str = "H100"
    link_gbs: float = 300.0
    network_gbs: float = 200.0
    host_gbs: float = 25.0
    disk_gbs: float = 2.0
    host_memory: float | None = None

    def __post_init__(self):
        speeds = ("link_gbs", "network_gbs", "host_gbs", "disk_gbs")
        _require_above_zero(**{name: getattr(self, name) for name in speeds})
        if self.card not in CARD_BYTES or peak_flops(self.card) is None:
            raise ValueError(f"--card {self.card!r}: expected one of {', '.join(CARD_BYTES)}")

    @property
    def cards(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Assumed:
    """Assumptions of the plan.

    samples: of a stage. mfu: the share of the card's peak that a step reaches. image_kb: the size of an image's file.
    sample: an average sample. Raises ``ValueError`` for a number that is not above 0.
    """

    samples: int = 10_000_000
    mfu: float = 0.4
    image_kb: float = 150.0
    sample: Sample = Sample()

    def __post_init__(self):
        _require_above_zero(samples=self.samples, mfu=self.mfu, image_kb=self.image_kb)
        if self.mfu > 1:
            raise ValueError(f"--mfu {self.mfu}: expected a share, at most 1")


def parse_nodes(text: str) -> tuple[int, int]:
    """Nodes, and cards of each, from a text such as ``8x4``. Raises ``ValueError`` for any other text."""
    nodes, times, gpus = text.partition("x")
    if not (times and nodes.isdigit() and gpus.isdigit() and int(nodes) and int(gpus)):
        raise ValueError(f"--plan {text!r}: expected NODESxGPUS, such as 8x8")
    return int(nodes), int(gpus)


def _require_above_zero(**options: float) -> None:
    for name, value in options.items():
        if value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number above 0")


@dataclass(frozen=True)
class Layout:
    """How states are distributed. ``shard`` cards share one copy; 1 is DDP. There are ``replicas`` copies."""

    name: str
    shard: int
    replicas: int


def layouts(cluster: Cluster) -> list[Layout]:
    found = [Layout("DDP", 1, cluster.cards), Layout("FSDP2, all cards", cluster.cards, 1)]
    if cluster.nodes > 1:
        found.append(Layout("FSDP2, shard = a node", cluster.gpus, cluster.nodes))
    return found


@dataclass(frozen=True)
class LayoutPlan:
    """The plan of one layout, for one card.

    memory: in bytes. link: bytes that it receives from its node in an optimisation step. network: its share of the
    bytes that the node receives from other nodes. seconds: of the step. bound: what limits the step. on_cpu: bytes of
    the CPU's memory. fits_host: whether those of all cards fit a node. copied: bytes between the card and the CPU's
    memory in the step.
    """

    layout: Layout
    memory: float
    fits: bool
    link: float
    network: float
    seconds: float
    bound: str
    on_cpu: float = 0
    fits_host: bool = True
    copied: float = 0


@dataclass(frozen=True)
class StagePlan:
    """The plan of a stage. micro_batches: per card and step. compute: seconds of a step with the assumed MFU. layouts:
    a plan for each layout."""

    global_batch: int
    steps: int
    micro_batches: int
    tokens_per_card: float
    compute: float
    checkpoint: int
    layouts: list[LayoutPlan]

    @property
    def best(self) -> LayoutPlan | None:
        """The fastest layout that fits."""
        return min((p for p in self.layouts if p.fits and p.fits_host), key=lambda p: p.seconds, default=None)


def plan_stage(stage: Stage, cluster: Cluster, assumed: Assumed) -> StagePlan:
    model = build_meta(stage)
    sizes, tokens = Sizes.of(model), model.layout.largest().num_tokens + assumed.sample.text_tokens
    per_step = stage.data.global_batch / cluster.cards
    limits = pack_limits(stage.data)
    per_micro_batch = stage.data.micro_batch if limits is None else max(1, limits["max_tokens"] // tokens)
    micro_batches = ceil(ceil(per_step) / per_micro_batch)
    compute = _needed_flops(model, stage, assumed) * per_step / (peak_flops(cluster.card) * assumed.mfu)
    held, copied = held_bytes(stage, model), copied_offloaded(stage, model, micro_batches)
    memory = plan_memory(stage, model)  # uses the model up
    return StagePlan(
        global_batch=stage.data.global_batch,
        steps=ceil(assumed.samples / stage.data.global_batch),
        micro_batches=micro_batches,
        tokens_per_card=per_step * tokens,
        compute=compute,
        checkpoint=sizes.saved * FLOAT + held,
        layouts=[
            plan_layout(layout, sizes, memory, cluster, micro_batches, compute, copied) for layout in layouts(cluster)
        ],
    )


def _needed_flops(model: nn.Module, stage: Stage, assumed: Assumed) -> float:
    """FLOPs of a training step on one sample, without recomputation, with cached codes."""
    shares = trained_shares(model)
    return sum(
        part.flops * training_factor(part, shares, recomputed=set(), cached=False)
        for part in forward_parts(model, assumed.sample)
        if not part.component.startswith("tokenizer.")
    )


def plan_layout(
    layout: Layout,
    sizes: Sizes,
    memory: MemoryPlan,
    cluster: Cluster,
    micro_batches: int,
    compute: float,
    copied: float = 0,
) -> LayoutPlan:
    """The plan of one layout. Products, links and network work at the same time, so the slowest decides.

    copied: bytes between all cards that share a copy of the model and the CPU's memory. DDP copies nothing."""
    link, network = received(layout, sizes, cluster, micro_batches)
    if layout.name == "DDP":
        memory, copied = replace(memory, gathered=None), 0
    gathered = gathered_bytes(sizes) if memory.gathered is None else memory.gathered
    if layout.shard == 1 and memory.gathered is None:
        gathered = 0
    held = memory.states_on(layout.shard) + gathered + memory.activations[memory.mode]
    times = dict(
        products=compute,
        links=link / (cluster.link_gbs * GB),
        network=network * cluster.gpus / (cluster.network_gbs * GB),
        copies=copied / layout.shard / (cluster.host_gbs * GB),
    )
    bound = max(times, key=times.get)
    on_cpu, room = memory.on_cpu(layout.shard), host_room(cluster.host_memory)
    return LayoutPlan(
        layout=layout,
        memory=held,
        fits=held <= USABLE * CARD_BYTES[cluster.card],
        link=link,
        network=network,
        seconds=times[bound],
        bound=bound,
        on_cpu=on_cpu,
        fits_host=room is None or fits_host(on_cpu * cluster.gpus, room),
        copied=copied / layout.shard,
    )


def received(layout: Layout, sizes: Sizes, cluster: Cluster, micro_batches: int) -> tuple[float, float]:
    """Bytes that a card receives in an optimisation step, and its share of the bytes from other nodes.

    Ring algorithms are assumed, with ``param_dtype='bfloat16'`` and ``reduce_dtype='float32'``. Weights of blocks are
    gathered in half precision, for the forward pass and again for the backward pass of each micro-batch. Weights of the
    root unit are gathered once, in float32. Gradients are reduced in float32: in each micro-batch if they are sharded,
    else once per step.
    """
    gathers = (2 * sizes.blocks * HALF + sizes.root * FLOAT) * micro_batches
    reduces = sizes.trained * FLOAT * micro_batches
    sharded = (gathers + reduces) * (layout.shard - 1) / layout.shard
    replicated = 2 * sizes.trained / layout.shard * FLOAT * (layout.replicas - 1) / layout.replicas
    crossing = (cluster.nodes - 1) / cluster.nodes
    if layout.shard == 1:  # within a node first, then one copy between nodes
        network = 2 * sizes.trained * FLOAT * crossing / cluster.gpus
    elif layout.replicas == 1:
        network = (gathers + reduces) * crossing / cluster.gpus
    else:
        network = replicated
    return sharded + replicated, network


@dataclass(frozen=True)
class InputPlan:
    """The plan of data loading. images_per_core: images per second and core, measured on this machine. cached_codes:
    bytes of the codes of all targets and samples. index: bytes of the offsets of all records."""

    images_per_core: float
    cached_codes: int
    index: int


def plan_inputs(cfg: Config, assumed: Assumed) -> InputPlan:
    """The plan of data loading for the last stage."""
    stage = Recipe(cfg).last
    model = build_meta(stage)
    specs = [spec for target in model.targets for spec in (target.truth_spec() or {}).values()]
    codes = sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs) * model.layout.largest().num_crops
    return InputPlan(
        images_per_core=images_per_second(model.encoder.transform, stage.data.image_aspect),
        cached_codes=codes * assumed.samples,
        index=2 * torch.int64.itemsize * assumed.samples,
    )


def images_per_second(transform: ImageTransform, aspect: str, seconds: float = 1.0) -> float:
    """The number of JPEGs of 640 x 480 pixels that one core opens, decodes and transforms in a second."""
    noise = np.random.RandomState(0).randint(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        with Image.open(io.BytesIO(file.getvalue())) as image:
            transform(image, aspect)
        count += 1
    return count / elapsed


def plan(cfg: Config, cluster: Cluster, assumed: Assumed) -> dict[str, StagePlan]:
    """The plans by stage. Raises ``ValueError`` if a stage's model cannot be run without data."""
    plans = {}
    for name, stage in Recipe(cfg).stages.items():
        try:
            plans[name] = plan_stage(stage, cluster, assumed)
        except ValueError:
            raise
        except Exception as error:  # it runs a user's own component, which may raise anything
            raise ValueError(f"stage {name} cannot be planned: {in_one_line(error)}") from error
    return plans
