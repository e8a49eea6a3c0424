"""The report of a study's probes: tables by layer, and a plot.

Legend: ``L`` layers, ``R`` runs of an arm (one for each seed), ``Q`` rows of the test part.
"""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from mmengine.config import Config

import asvr
from asvr.base.plots import optional, plain
from asvr.base.text import table
from asvr.studies.plots import arm_colours, pyplot
from asvr.studies.probe_truth import PROBES
from asvr.studies.report import by_chance, of_few_seeds, shown_config, shown_seeds
from asvr.studies.significance import Difference, paired_bootstrap

DRAWS = 2000  # of scenes, for each interval; there are many intervals
ON_IMAGE, ON_ASKED = "attention on the image", "attention on the asked object"
TITLES = dict(
    color="the colour of a plate, from its visual tokens",
    what="the name of an object, from the visual tokens of its plate",
    letter="a letter, from its visual tokens",
    count="the number of objects, from the mean over all visual tokens",
    place="whether an object is at a place (four yes/no probes), from the mean over all visual tokens",
) | {
    ON_IMAGE: "the share of an answer's attention that is on the visual tokens; the rest is on text",
    ON_ASKED: "the part of the image's attention that is on the plate that the question asks about",
}


@dataclass(frozen=True)
class Measured:
    """One measure of one arm. values_LRQ: from 0 to 1. first: the number of the first layer. guess: what guessing
    gives, or None."""

    values_LRQ: np.ndarray
    scenes_Q: np.ndarray
    first: int
    guess: float | None


def measured(runs: list[dict]) -> dict[str, Measured]:
    """The measures of an arm, by name. runs: as `asvr.studies.probe_runs.probe_study` returns them."""
    found = {}
    for name in PROBES:
        own = [run["probes"][name] for run in runs]
        values_LRQ = np.array([probe["right"] for probe in own], dtype=float).swapaxes(0, 1)
        found[name] = Measured(values_LRQ, np.array(own[0]["scenes"]), 0, float(np.mean(own[0]["guess"])))
    attention = [run["attention"] for run in runs]
    for name, key, scenes in ((ON_IMAGE, "image", "scenes"), (ON_ASKED, "asked", "asked_scenes")):
        if all(own is not None and own[scenes] for own in attention):
            values_LRQ = np.array([own[key] for own in attention]).swapaxes(0, 1)
            guess = attention[0]["area"] if name == ON_ASKED else None
            found[name] = Measured(values_LRQ, np.array(attention[0][scenes]), 1, guess)
    return found


def compare_probes(study: Config, found: dict[str, list[dict]]) -> dict:
    """Each measure by arm and layer: its mean with an interval, and its difference from the baseline with an interval.

    An arm is compared with the baseline over the seeds that both have. There is no difference where the LLMs have
    another number of layers. ``left_out``: measures that some arms lack, with these arms."""
    whole = {arm: measured(runs) for arm, runs in found.items()}
    base = whole[study.baseline]
    lacking = {name: [arm for arm, own in whole.items() if name not in own] for name in TITLES}
    names = [name for name in TITLES if not lacking[name]]
    base_seeds = [run["seed"] for run in found[study.baseline]]
    arms = {}
    for arm, runs in found.items():
        seeds = [run["seed"] for run in runs]
        rows = [base_seeds.index(seed) for seed in seeds]
        arms[arm] = dict(seeds=seeds, measures={})
        for name in names:
            own, other = whole[arm][name], base[name]
            compared = arm != study.baseline and len(own.values_LRQ) == len(other.values_LRQ)
            arms[arm]["measures"][name] = [
                _of_layer(own, values_RQ, other.values_LRQ[number][rows] if compared else None) | dict(layer=layer)
                for number, (layer, values_RQ) in enumerate(enumerate(own.values_LRQ, own.first))
            ]
    of_names = {
        name: dict(guess=base[name].guess, rows=len(base[name].scenes_Q), scenes=len(set(base[name].scenes_Q)))
        for name in names
    }
    left_out = {name: own for name, own in lacking.items() if own}
    return dict(baseline=study.baseline, seeds=base_seeds, measures=of_names, left_out=left_out, arms=arms)


def _of_layer(own: Measured, values_RQ: np.ndarray, other_RQ: np.ndarray | None) -> dict:
    alone = paired_bootstrap(values_RQ, np.zeros_like(values_RQ), own.scenes_Q, draws=DRAWS)
    found = dict(share=alone.mean, low=alone.low, high=alone.high, by_seed=values_RQ.mean(1).tolist())
    if other_RQ is None:
        return found
    gain = paired_bootstrap(values_RQ, other_RQ, own.scenes_Q, draws=DRAWS)
    return found | dict(gain=gain.mean, gain_low=gain.low, gain_high=gain.high)


def write_probe_report(
    study: Config, found: dict[str, list[dict]], out: Path, *, name: str, scenes: int, missing: list[str]
) -> str:
    """Write ``probes.json``, ``probes.md`` and ``probes.png`` to ``out``, and return the text.

    scenes: the number of scenes of all parts. The other arguments are those of `asvr.studies.report.write_report`.
    """
    result = compare_probes(study, found)
    layers = [layer for arm in result["arms"].values() for own in arm["measures"].values() for layer in own]
    about = dict(
        study=name,
        date=date.today().isoformat(),
        asvr=asvr.__version__,
        config=shown_config(Path(study.config)),
        scenes=scenes,
        intervals=sum(layer.get("gain_low") is not None for layer in layers),
        missing=missing,
    )
    (out / "probes.json").write_text(json.dumps(dict(about=about, **result), indent=1) + "\n", encoding="utf-8")
    text = _heading(about, result) + "".join(_section(measure, result) for measure in result["measures"])
    (out / "probes.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    with optional(out / "probes.png"):
        draw_probes(result, out / "probes.png")
    return text


def _heading(about: dict, result: dict) -> str:
    arms = [f"`{arm}`{' (baseline)' if arm == result['baseline'] else ''}" for arm in result["arms"]]
    tested = max(own["scenes"] for own in result["measures"].values())
    lines = [
        f"# {about['study']}: probes",
        "",
        f"- Date: {about['date']}. asvr {about['asvr']}.",
        f"- Config: `{about['config']}`",
        f"- Arms: {', '.join(arms)}",
        f"- Seeds: {shown_seeds(result)}",
        f"- Scenes: {about['scenes']} with the held-out drawings. {tested} of them test the probes; the probes learn "
        "from the others.",
        f"- Intervals of differences: {about['intervals']}.{by_chance(about['intervals'])}",
        "- Layer 0 is the input of the LLM at the visual tokens. Layer k is the output of its k-th block.",
        "- A cell is the mean over seeds in %, with its 95 % confidence interval. `guess`: always the most frequent "
        "class; for the attention, the plate's part of the image. `-`: no spread, or layers that have no counterpart.",
        "- A probe shows what can be read from a layer, not what the model uses.",
    ]
    if about["missing"]:
        lines.append(f"- Left out: {'; '.join(about['missing'])}.")
    for measure, without in result["left_out"].items():
        lines.append(f"- Left out for all arms: {measure}. {', '.join(f'`{arm}`' for arm in without)} cannot give it.")
    if (warning := of_few_seeds(result)) is not None:
        lines.append(f"- **{warning[0]}** {warning[1]}")
    return "\n".join([*lines, "", ""])


def _section(measure: str, result: dict) -> str:
    about, arms = result["measures"][measure], result["arms"]
    layers = list(dict.fromkeys(own["layer"] for arm in arms.values() for own in arm["measures"][measure]))
    by_layer = {arm: {own["layer"]: own for own in found["measures"][measure]} for arm, found in arms.items()}
    guess = [] if about["guess"] is None else [f"{100 * about['guess']:.1f}"]
    rows = [[str(n), *guess, *(_share(own.get(n)) for own in by_layer.values())] for n in layers]
    others = [arm for arm in arms if arm != result["baseline"]]
    gains = [[str(n), *(_gain(by_layer[arm].get(n)) for arm in others)] for n in layers]
    lines = [
        f"## {measure}",
        "",
        f"In %: {TITLES[measure]}. {about['rows']} rows of {about['scenes']} scenes.",
        "",
        table(["layer", *(["guess"] if guess else []), *arms], rows),
    ]
    if others:
        lines += [
            f"Difference from {result['baseline']!r} in percentage points, with its 95 % confidence interval.",
            "",
            table(["layer", *others], gains),
        ]
    return "\n".join([*lines, ""])


def _share(own: dict | None) -> str:
    if own is None:
        return "-"
    interval = "-" if own["low"] is None else f"{100 * own['low']:.1f} to {100 * own['high']:.1f}"
    return f"{100 * own['share']:.1f} ({interval})"


def _gain(own: dict | None) -> str:
    return "-" if own is None or "gain" not in own else str(Difference(own["gain"], own["gain_low"], own["gain_high"]))


def draw_probes(result: dict, file: Path) -> None:
    """Plot each measure by layer: a line for each arm, with its interval as a band. Dashes: guessing."""
    plt = pyplot()
    colours = arm_colours(plt, result["arms"], result["baseline"])
    last = max(one["layer"] for arm in result["arms"].values() for own in arm["measures"].values() for one in own)
    columns = 4
    rows = -(-len(result["measures"]) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(result["measures"]) :]:
        axis.set_visible(False)
    for axis, (measure, about) in zip(axes.flat, result["measures"].items(), strict=False):
        for arm, found in result["arms"].items():
            own = found["measures"][measure]
            layers, shares = [one["layer"] for one in own], [100 * one["share"] for one in own]
            low, high = ([_on_plot(one, end) for one in own] for end in ("low", "high"))
            width = 2.2 if arm == result["baseline"] else 1.3
            axis.plot(layers, shares, ".-", label=plain(arm), color=colours[arm], linewidth=width)
            if len(layers) > 1:
                axis.fill_between(layers, low, high, color=colours[arm], alpha=0.15, linewidth=0)
            else:
                axis.vlines(layers, low, high, color=colours[arm], alpha=0.4)
        if about["guess"] is not None:
            axis.axhline(100 * about["guess"], color="grey", linestyle="--", linewidth=1)
        axis.set_title(measure)
        axis.set_xlabel("layer")
        axis.set_ylabel("%" if measure.startswith("attention") else "right, %")
        axis.set_xlim(-0.2, last + 0.2)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _on_plot(own: dict, end: str) -> float:
    """An end of an interval in %. An interval may reach beyond what is possible, which is not drawn."""
    return 100 * min(1.0, max(0.0, own["share"] if own[end] is None else own[end]))
