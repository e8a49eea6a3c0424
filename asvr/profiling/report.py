"""The report of ``benchmarks/flops.py``: FLOPs counted in three ways, a comparison of configs, the paper's number."""

import json
import warnings
from pathlib import Path

import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from asvr.data.transforms import blank_pixels, move
from asvr.flops.analytic import formulas
from asvr.flops.count import Part, Sample, recomputed_parts, training_factor
from asvr.flops.memory import leaves_images_out, plan_memory
from asvr.flops.step import parts_by_stage
from asvr.models.attention import use_attention
from asvr.models.targets import CodeTarget
from asvr.models.trainable import trained_shares
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage

# Training FLOPs that the paper's tables give for ASVR on LLaVA-1.5's 665K samples (tables 6 and 7).
PAPER_FLOPS, PAPER_SAMPLES = 1.53e19, 665_298


def counted_by_torch(model: torch.nn.Module, sample: Sample) -> dict[str, int]:
    """Forward FLOPs by torch's own counter, for the parts that run on the meta device."""
    llm, encoder = model.llm, model.encoder
    tokens = model.layout.largest().num_tokens + sample.text_tokens
    dtype, crops = next(llm.parameters()).dtype, model.layout.largest().num_crops
    calls = {
        "encoder": lambda: encoder(move(blank_pixels(encoder.transform, crops), torch.device("meta"))),
        "projector": lambda: model.projector(torch.zeros(crops, encoder.num_tokens, encoder.width, device="meta")),
        "LLM blocks": lambda: llm.hidden(torch.zeros(1, tokens, llm.hidden_size, dtype=dtype, device="meta")),
        "LM head": lambda: model.text_classifier()(
            torch.zeros(sample.text_tokens, llm.hidden_size, dtype=dtype, device="meta")
        ),
    }
    for target in (target for target in model.targets if isinstance(target, CodeTarget)):
        positions = crops * target.positions.per_image
        shapes = (positions, llm.hidden_size), (positions, target.tokenizer.depth, target.tokenizer.code_width)
        calls[f"head {target.name}"] = lambda target=target, shapes=shapes: target.run_head(
            *(torch.zeros(shape, device="meta") for shape in shapes)
        )
        linears = target.classifiers
        calls[f"classifiers {target.name} (depth {len(linears)})"] = lambda linears=linears, rows=positions: [
            linear(torch.zeros(rows, linear.in_features, device="meta")) for linear in linears
        ]
        quantizer = getattr(target.tokenizer, "quantizer", None)
        if quantizer is not None:
            shape = (crops * target.tokenizer.num_tokens, target.tokenizer.code_width)
            calls[f"tokenizer {target.name}: code search"] = lambda quantizer=quantizer, shape=shape: quantizer.encode(
                torch.zeros(shape, device="meta")
            )
    found = {}
    for name, call in calls.items():
        with warnings.catch_warnings(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            warnings.simplefilter("ignore")
            call()
        found[name] = counter.get_total_flops()
    return found


def flops_report(cfg: Config, sample: Sample) -> dict:
    """Forward FLOPs of each part, counted in three ways, and FLOPs of a training step by stage, online and cached."""
    recipe = Recipe(cfg)
    models = {name: build_meta(stage).eval() for name, stage in recipe.stages.items()}
    seeing = (name for name, stage in recipe.stages.items() if not leaves_images_out(stage.data))
    shown = next(seeing, recipe.first.name)
    by_stage, model = parts_by_stage(recipe, models, sample), models[shown]
    parts = by_stage[shown]
    use_attention(model, "sdpa", None)  # transformers' own mask cannot be made on the meta device
    by_formula, by_torch = formulas(model, sample), counted_by_torch(model, sample)
    rows = [
        dict(part=part.name, fvcore=part.flops, formula=by_formula.get(part.name), torch=by_torch.get(part.name))
        for part in parts
    ]
    training = {name: training_flops(stage, models[name], by_stage[name]) for name, stage in recipe.stages.items()}
    return dict(
        text_tokens=sample.text_tokens,
        image_tokens=model.layout.largest().num_tokens,
        parameters={name: _count(module) for name, module in model.components().items()},
        forward=rows,
        training=training,
    )


def training_flops(stage: Stage, model: torch.nn.Module, parts: list[Part]) -> dict[str, float]:
    """FLOPs of a training step on one sample."""
    recomputed, train = recomputed_parts(stage.model), trained_shares(model)
    online, cached = (sum(_step(part, train, recomputed, cached=cached) for part in parts) for cached in (False, True))
    return dict(online=online, cached=cached, without_recomputation=_needed(parts, train))


def _step(part, train: dict[str, float], recomputed: set[str], *, cached: bool) -> float:
    """FLOPs of a part in a training step. With cached codes the encoder runs, and tokenizers do not."""
    without = cached and part.component.startswith("tokenizer.")
    return 0 if without else part.flops * training_factor(part, train, recomputed=recomputed, cached=False)


def _needed(parts: list, train: dict[str, float]) -> float:
    return sum(_step(part, train, set(), cached=True) for part in parts)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) + sum(b.numel() for b in module.buffers())


def memory_bytes(cfg: Config) -> dict[str, int]:
    """Bytes by stage, on one card."""
    plans = {name: plan_memory(stage, build_meta(stage)) for name, stage in Recipe(cfg).stages.items()}
    return {name: plan.total for name, plan in plans.items()}


def added(report: dict, other: dict) -> dict:
    """The cost that ``report`` adds to ``other`` (the same model with fewer targets), in percent of ``other``."""
    last = list(report["training"])[-1]
    base = other["training"][last]["online"]
    own, theirs = (sum(r["parameters"].values()) for r in (report, other))
    return dict(
        stage=last,
        flops_online=100 * (report["training"][last]["online"] / base - 1),
        flops_cached=100 * (report["training"][last]["cached"] / base - 1),
        parameters=100 * (own / theirs - 1),
    )


def paper_ratio(report: dict) -> dict:
    """The last stage's training FLOPs over the paper's samples, divided by the number in the paper's tables.

    The paper does not say how it counts. multiply_accumulates: one multiply-accumulate counts as one FLOP, without
    recomputation.
    """
    last = list(report["training"].values())[-1]
    last = dict(last, multiply_accumulates=last["without_recomputation"] / 2)
    return {key: value * PAPER_SAMPLES / PAPER_FLOPS for key, value in last.items()}


def markdown(report: dict) -> str:
    unit = 1e12 if sum(row["fvcore"] for row in report["forward"]) > 1e11 else 1e9
    name = "TFLOP" if unit == 1e12 else "GFLOP"
    lines = [
        f"One sample: an image ({report['image_tokens']} tokens), {report['text_tokens']} text tokens, all supervised.",
        "",
        f"| part | forward, {name} (fvcore) | by formula | by torch's counter |",
        "|---|---|---|---|",
    ]
    for row in report["forward"]:
        others = [
            "" if row[key] is None else f"{row[key] / unit:.3f} ({100 * (row[key] / row['fvcore'] - 1):+.2f} %)"
            for key in ("formula", "torch")
        ]
        lines.append(f"| {row['part']} | {row['fvcore'] / unit:.3f} | {others[0]} | {others[1]} |")
    lines += [
        "",
        f"| training step, {name} | online codes | cached codes | without recomputation |",
        "|---|---|---|---|",
    ]
    for stage, values in report["training"].items():
        cells = " | ".join(f"{values[key] / unit:.2f}" for key in ("online", "cached", "without_recomputation"))
        lines.append(f"| {stage} | {cells} |")
    return "\n".join(lines) + "\n"


def added_in_words(found: dict) -> str:
    memory = ", ".join(f"{value:.1f} % ({name})" for name, value in found["memory"].items())
    return (
        f"in {found['stage']}: FLOPs {found['flops_online']:.1f} % with online codes, {found['flops_cached']:.1f} % "
        f"with cached ones; parameters {found['parameters']:.1f} %; memory by the plan {memory}"
    )


def save(out: Path | None, result, text: str) -> None:
    """Print the text. If ``out`` is not None, also write ``out``.json and ``out``.md."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(text, encoding="utf-8", errors="backslashreplace")
    print(text)
