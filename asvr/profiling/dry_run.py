"""The dry run of a config, without weights or data: ``asvr train CONFIG --dry-run``."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import nn

from asvr.data.layouts import Layout, layout_config
from asvr.flops.count import Part, Sample, recomputed_parts, training_factor
from asvr.flops.host_memory import HOST_USABLE, fits_host, host_room, require_offload
from asvr.flops.memory import (
    MACHINES,
    USABLE,
    MemoryPlan,
    in_one_line,
    largest_micro_batch,
    leaves_images_out,
    plan_memory,
)
from asvr.flops.step import parts_by_stage
from asvr.models.checkpointing import MODES
from asvr.models.targets import CodeTarget, grids_of
from asvr.models.trainable import packed_weights, trained_shares
from asvr.recipe.preflight import check_sizes
from asvr.recipe.recipe import Recipe, Stage
from asvr.recipe.validate import check_config

WIDTH = 132
SAMPLE = Sample()


def dry_run(cfg: Config, sample: Sample = SAMPLE, host_memory: float | None = None) -> str:
    """Tables of parameters, tokens per image, FLOPs and memory, by stage, as text.

    host_memory: GB of the CPU's memory of the machine that will train; None: that of this machine. Raises
    ``ValueError`` for a wrong config, as a real run does.
    """
    check_config(cfg)
    recipe = Recipe(cfg)
    require_offload(recipe, host_memory)
    models = check_sizes(recipe)
    tables = [
        _parameters(models),
        _tokens(recipe, models),
        _flops_or_why(recipe, models, sample),
        _memory_or_why(recipe, models, host_room(host_memory)),
    ]
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False)  # names may hold brackets
    console.print(
        f"Dry run of {Path(cfg.filename).name if cfg.filename else 'the config'}: no weights, no data", highlight=False
    )
    for table in tables:
        console.print("", table, sep="\n", highlight=False)
    return text.getvalue().rstrip()


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _parameters(models: dict[str, nn.Module]) -> Table:
    table = _table(
        "Parameters and codebooks, millions", "component", "class", "total", *(f"trained in {name}" for name in models)
    )
    by_stage = {name: model.components() for name, model in models.items()}
    rows, every = [], {}
    for components in by_stage.values():  # a component is taken from the first stage that has it
        every = components | {name: part for name, part in every.items() if _millions(part)}
    for component, module in every.items():
        trained = [
            _millions(stage[component], trained_only=True) if component in stage else 0.0 for stage in by_stage.values()
        ]
        rows.append([_millions(module), *trained])
        kinds = (
            {type(m).__name__ for m in module.values()}
            if isinstance(module, nn.ModuleDict)
            else {type(module).__name__}
        )
        table.add_row(component, ", ".join(sorted(kinds)) or "none", *map(_number, rows[-1]))
    table.add_section()
    table.add_row("sum", "", *(_number(sum(column)) for column in zip(*rows, strict=True)))
    return table


def _millions(module: nn.Module, trained_only: bool = False) -> float:
    tensors = module.state_dict(keep_vars=True).values()
    packed = 0 if trained_only else packed_weights(module)
    return (sum(t.numel() for t in tensors if t.requires_grad or not trained_only) + packed) / 1e6


def _tokens(recipe: Recipe, models: dict[str, nn.Module]) -> Table:
    table = _table("Visual tokens of an image", "", "grid", "tokens", "codes", "codebooks")
    model = next(iter(models.values()))
    image, grids = model.layout.largest(), "of each image"
    if not hasattr(model.encoder.transform, "grid_of"):
        grids = " + ".join(f"{rows} x {columns}" for rows, columns in grids_of(model.encoder))
    several = len({str(layout_config(stage.model)) for stage in recipe.stages.values()}) > 1
    if model.layout.fixed is None or several:
        table.add_row("encoder, one crop", grids, str(model.encoder.num_tokens), "", "")
        for name, own in models.items() if several else [("", model)]:
            image, upto = own.layout.largest(), "" if own.layout.fixed else "up to "
            crops = f"{upto}{image.num_crops} crops" if image.num_crops > 1 else ""
            what = f"{type(own.layout).__name__}{f', {name}' if several else ''}"
            table.add_row(what, crops, f"{upto}{image.num_tokens}", "", "")
    else:
        table.add_row("encoder", grids, str(image.num_tokens), "", "")
    for target in {target.name: target for own in reversed(models.values()) for target in own.targets}.values():
        if not isinstance(target, CodeTarget):
            table.add_row(f"target {target.name}", "", str(target.positions.per_image), "", target.describe())
            continue
        tokenizer = target.tokenizer
        rows, columns = tokenizer.grid
        sizes = sorted(set(tokenizer.codebook_sizes))
        books = f"{tokenizer.depth} of {' / '.join(f'{size:,}' for size in sizes)}"
        codes = tokenizer.num_tokens * tokenizer.depth
        table.add_row(f"target {target.name}", f"{rows} x {columns}", str(tokenizer.num_tokens), f"{codes:,}", books)
    return table


def _flops_or_why(recipe: Recipe, models: dict[str, nn.Module], sample: Sample) -> Table | str:
    """The table of FLOPs. If a model cannot be traced, a line says so, and the other tables are still printed."""
    try:
        return _flops(recipe, models, sample)
    except Exception as error:  # tracing runs a user's own component, which may raise anything
        return f"FLOPs are not counted: {in_one_line(error)}"


def _memory_or_why(recipe: Recipe, models: dict[str, nn.Module], room: float | None) -> Table | str:
    """The memory plan, or a line that says why there is none."""
    try:
        plans = {name: plan_memory(recipe.stages[name], models[name]) for name in models}
    except Exception as error:  # a user's own component may raise anything here too
        return f"Memory is not planned: {in_one_line(error)}"
    return _memory(plans, recipe, {name: model.layout.largest() for name, model in models.items()}, room)


def _flops(recipe: Recipe, models: dict[str, nn.Module], sample: Sample) -> Table:
    """The table of FLOPs. The column ``forward`` counts each part in the first stage that has it. The other columns
    count their own stage."""
    sample = _that_fits(recipe, models, sample)
    blind = [name for name, stage in recipe.stages.items() if leaves_images_out(stage.data)]
    by_stage = parts_by_stage(recipe, models, sample)
    seeing = [own for name, own in by_stage.items() if name not in blind] or list(by_stage.values())
    parts = {part.name: part for own in reversed(seeing) for part in own}
    parts = {part.name: part for own in seeing for part in own} | parts
    factors = step_factors(recipe, models)
    forward = sum(part.flops for part in parts.values())
    unit, scale = ("TFLOPs", 1e12) if forward >= 1e11 else ("MFLOPs", 1e6)
    table = _table(
        f"{unit} of one sample (1 multiply-accumulate = 2 FLOPs)",
        "part",
        "forward",
        *(f"training step, {name}" for name in recipe.stages),
        caption=(
            f"One sample = 1 image ({_image_tokens(models)} tokens) and {sample.text_tokens} text tokens, all "
            f"supervised. {_without(blind)}The number in brackets is the cost of a training step in forward passes: "
            "0 if data.cache has the result, 1 if no gradient is needed, 2 if a gradient only passes through, 3 if the "
            "weights are trained (between 2 and 3: some of them). Nearly 1 is added if the backward pass computes the "
            "forward pass again (activation_checkpointing='full')."
        ),
    )
    stages = list(recipe.stages.values())
    totals = [0] * len(stages)
    found = [{part.name: part for part in by_stage[stage.name]} for stage in stages]
    for name, part in parts.items():
        cells = []
        for i, stage in enumerate(stages):
            own = found[i].get(name)
            if own is None:
                cells.append("")
                continue
            factor = factors[stage.name](own)
            totals[i] += own.flops * factor
            cells.append(f"{_number(own.flops * factor / scale)}  (x {factor:.3g})")
        table.add_row(name, _number(part.flops / scale), *cells)
    table.add_section()
    table.add_row("sum", _number(forward / scale), *(_number(total / scale) for total in totals))
    return table


def _that_fits(recipe: Recipe, models: dict[str, nn.Module], sample: Sample) -> Sample:
    """The sample, with less text if an image and this text are longer than a sample may be (``data.max_length``)."""
    room = [
        stage.data.max_length - models[name].layout.largest().num_tokens
        for name, stage in recipe.stages.items()
        if not leaves_images_out(stage.data)
    ]
    return replace(sample, text_tokens=max(1, min([sample.text_tokens, *room])))


def _without(blind: list[str]) -> str:
    """A sentence about the stages whose data set leaves images out, or nothing."""
    if not blind:
        return ""
    return f"{'Stage' if len(blind) == 1 else 'Stages'} {', '.join(blind)}: the same text without the image. "


def step_factors(recipe: Recipe, models: dict[str, nn.Module]) -> dict[str, Callable[[Part], float]]:
    """The cost of a part in a training step, in forward passes, by stage. Cache and checkpointing are the config's."""
    codes = {f"tokenizer.{t.name}" for model in models.values() for t in model.targets if type(t) is CodeTarget}

    def factor(part: Part, stage: Stage, shares: dict[str, float], recomputed: set[str]) -> float:
        cached = _is_cached(part, stage.data.get("cache", False), codes)
        return training_factor(part, shares, recomputed=recomputed, cached=cached)

    return {
        name: partial(
            factor, stage=stage, shares=trained_shares(models[name]), recomputed=recomputed_parts(stage.model)
        )
        for name, stage in recipe.stages.items()
    }


def _image_tokens(models: dict[str, nn.Module]) -> str:
    tokens = {name: model.layout.largest().num_tokens for name, model in models.items()}
    if len(set(tokens.values())) == 1:
        return str(next(iter(tokens.values())))
    return ", ".join(f"{name} {number}" for name, number in tokens.items())


def _is_cached(part: Part, cache: bool | str, codes: set[str]) -> bool:
    """Whether the result of a part is cached. ``data.cache='codes'`` caches only codes, ``True`` features too. codes:
    the components that make codes."""
    return cache is True or (cache == "codes" and part.component in codes)


def _number(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def _micro_batch(stage: Stage, image: Layout) -> str:
    rows, tokens, images = largest_micro_batch(stage.data, image)
    seen = f"with {images} images in all" if images else "without images"
    return f"{rows} {'row' if rows == 1 else 'rows'} of {tokens} tokens {seen}"


def _memory(plans: dict[str, MemoryPlan], recipe: Recipe, images: dict[str, Layout], room: float | None) -> Table:
    """The table of the memory plan. images: the layout of the largest image, by stage. room: see `host_room`."""
    rows = ", ".join(f"{name} {_micro_batch(recipe.stages[name], images[name])}" for name in plans)
    sizes = {machine.name: machine.card_bytes for machine in MACHINES}
    table = _table(
        "Memory plan, GB (1e9 bytes)",
        "",
        *plans,
        caption=(
            f"Activations are those of one micro-batch on each card ({rows}). They are the tensors that autograd keeps "
            "for the backward pass, with bf16 copies of float32 weights. Numbers in brackets are for modes that the "
            "config does not use. With several cards, states (not activations) are sharded evenly over them, except "
            "4-bit weights, which each card has in full. With parallel.cpu_offload, states are in the memory of the "
            "CPU, and a card also holds the weights in use. `asvr plan --plan` shows more about several cards. "
            f"A plan fits if the sum is at most {USABLE:.0%} of the memory that torch reports "
            f"({', '.join(f'{name}: {size / 1e9:.0f}e9 bytes' for name, size in sizes.items())})."
        ),
    )
    lines = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimiser state" + (" and averages" if recipe.runtime.get("ema") else ""),
    }
    for field, label in lines.items():
        table.add_row(label, *(_number(getattr(plan, field) / 1e9) for plan in plans.values()))
    for mode in MODES:
        cells = [_number(plan.activations[mode] / 1e9) for plan in plans.values()]
        cells = [cell if plan.mode == mode else f"({cell})" for cell, plan in zip(cells, plans.values(), strict=True)]
        table.add_row("activations" + (f", {mode} checkpointing" if mode != "none" else ""), *cells)
    table.add_section()
    for machine in MACHINES:
        cells = [
            f"{_number(p.per_card(machine) / 1e9)}  {'fits' if p.fits(machine) else 'does NOT fit'}"
            for p in plans.values()
        ]
        table.add_row(f"on each card of {machine}", *cells)
    if any(plan.gathered is not None for plan in plans.values()):
        _add_host_memory(table, list(plans.values()), room)
    return table


def _add_host_memory(table: Table, plans: list[MemoryPlan], room: float | None) -> None:
    """Rows for the memory of the CPU that all cards of a machine take together, and a sentence about its size."""
    for machine in MACHINES:
        needs = [machine.cards * plan.on_cpu(machine.cards) for plan in plans]
        ends = ["" if room is None else "  fits" if fits_host(need, room) else "  does NOT fit" for need in needs]
        cells = [_number(need / 1e9) + end for need, end in zip(needs, ends, strict=True)]
        table.add_row(f"memory of the CPU of {machine}", *cells)
    if room is not None:
        table.caption += (
            f" The memory of the CPU is {room / 1e9:,.1f}e9 bytes (this machine's, or by `asvr plan --host-memory`), "
            f"and states may fill {HOST_USABLE:.0%} of it."
        )
