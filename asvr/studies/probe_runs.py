"""Probes the finished runs of a study, and keeps what they found in ``<arm>/seed_<n>/probes/probes.json``.

The scenes are drawn as those of the study's own questions, but always with the held-out drawings (``split='test'``).
The first of them are the scenes of these questions, if the questions have the same drawings. A probe learns from other
scenes than it is tested on, see `asvr.studies.probes.parts_of`.

Layer 0 is the input of the LLM's first block: the projector's output at a visual token. Layer ``k`` is the output of
the k-th block, for the last one before the final norm. The model sees each image as in a question; no token of an image
sees the text after it.

Legend: ``I`` images, ``N`` visual tokens of an image, ``G`` regions, ``H`` LLM width, ``L`` layers.
"""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from asvr.base.files import replace_text
from asvr.base.log import logger, progress_bar
from asvr.base.precision import computing_in
from asvr.data.images import open_image
from asvr.data.layouts import ImageLayout
from asvr.data.scenes import Scenes
from asvr.data.scenes.scene import painter
from asvr.data.templates import IMAGE_MARK
from asvr.demo.maps import answer_attention
from asvr.engine.finished import last_checkpoint, weights_digest
from asvr.engine.run import read_json_file
from asvr.loading import load
from asvr.pretrained import Pretrained
from asvr.recipe.preflight import preflight
from asvr.recipe.recipe import Recipe
from asvr.registry import DATASETS
from asvr.studies.probe_truth import PROBES, asked_place, coverage, rows_of
from asvr.studies.probes import TEST, Fitted, fit_probe, parts_of
from asvr.studies.results import Run, runs, sighted
from asvr.studies.study_file import arm_config

VERSION = 1  # of what is measured; files of another version are made again
DEFAULT_SCENES = 1500
ATTENDED = 100  # the most scenes of the test part whose questions are asked for the attention
BATCH = 32  # images
DRAWN = ("concepts", "size", "seed")  # the arguments that decide the scenes of a split, besides their number


def probe_study(study: Config, out: Path, *, scenes: int = DEFAULT_SCENES) -> tuple[dict[str, list[dict]], list[str]]:
    """Probe all finished runs. Returns for each arm the results of its seeds, see `probe`, and what is left out.

    The baseline comes first. Results of the same weights, scenes, drawings and version are kept. Left out are runs that
    are not finished, arms that are asked without images, and seeds that the baseline lacks. Raises ``ValueError``
    before anything is computed if the study cannot be probed.
    """
    parts_of(scenes)
    with_images = sighted(study, out)
    blind = {run.arm for run in runs(study, out)} - {run.arm for run in with_images}
    missing = [f"{arm} (asked without images)" for arm in study.arms if arm in blind]
    recipes = {arm: Recipe(arm_config(study, arm, study.seeds[0], out)) for arm in study.arms if arm not in blind}
    last = {arm: recipe.last.name for arm, recipe in recipes.items()}
    finished = [run for run in with_images if last_checkpoint(run.work_dir, last[run.arm]) is not None]
    missing += [f"{run.arm}, seed {run.seed} (not finished)" for run in with_images if run not in finished]
    shared = {run.seed for run in finished if run.arm == study.baseline}
    if not shared:
        raise ValueError(
            f"{out}: no run of the baseline {study.baseline!r} is finished, so there is nothing to compare with: run "
            "the same command without --probes first"
        )
    missing += [f"{r.arm}, seed {r.seed} (the baseline lacks it)" for r in finished if r.seed not in shared]
    chosen = sorted((run for run in finished if run.seed in shared), key=lambda run: run.arm != study.baseline)
    dataset = _scenes_of(study, {run.arm: recipes[run.arm] for run in chosen}, scenes)
    made_with = {run: _made_with(run, last[run.arm], dataset) for run in chosen}
    results = {run: read_json_file(_file(run)) for run in chosen}
    waiting = [run for run in chosen if results[run].get("made_with") != made_with[run]]
    if kept := len(chosen) - len(waiting):
        logger.info("%d of %d runs are probed already", kept, len(chosen))
    with progress_bar(desc="probes", unit="step", disable=not waiting) as bar:
        for number, run in enumerate(waiting):
            pretrained = load(run.work_dir, device=recipes[run.arm].runtime.device)
            # Runs have about as many steps as one another, so the first one tells how long all will take.
            bar.total = bar.n + (len(waiting) - number) * _steps(pretrained, dataset)
            results[run] = dict(made_with=made_with[run], **probe(pretrained, dataset, done=bar.update))
            del pretrained  # before the next model is loaded
            _file(run).parent.mkdir(exist_ok=True)
            replace_text(_file(run), json.dumps(results[run]) + "\n")
            logger.info("%s, seed %d: probed (%s)", run.arm, run.seed, _file(run))
    found: dict[str, list[dict]] = {}
    for run in chosen:
        found.setdefault(run.arm, []).append(dict(results[run], seed=run.seed))
    return found, missing


def _file(run: Run) -> Path:
    return run.work_dir / "probes" / "probes.json"


def _scenes_of(study: Config, recipes: dict[str, Recipe], scenes: int) -> Scenes:
    """The scenes of the probes. Raises ``ValueError`` if an arm cannot be probed, or has other scenes."""
    drawn: dict[str, dict] = {}
    for arm, recipe in recipes.items():
        asked = recipe.last.evaluation.dataset
        if DATASETS.get(asked["type"]) is not Scenes:  # a class that derives from it may draw other scenes
            raise ValueError(
                f"arm {arm!r}: its questions are of {asked['type']}, whose images have no known content: probes need "
                "evaluation.dataset of type Scenes"
            )
        if (problem := _no_places(preflight(recipe.only(recipe.last.name))[recipe.last.name])) is not None:
            raise ValueError(f"arm {arm!r}: {problem}, so no visual token is known to show an object: leave it out")
        drawn[arm] = {key: asked[key] for key in (*DRAWN, "kinds") if key in asked}
    first = drawn[study.baseline]
    if others := [arm for arm, own in drawn.items() if own != first]:
        raise ValueError(
            f"arm {others[0]!r} is asked about other scenes than the baseline {study.baseline!r}: probes need the same "
            f"{', '.join((*DRAWN, 'kinds'))} in evaluation.dataset of all arms"
        )
    return Scenes(split="test", scenes=scenes, per_scene=None, **first)


def _no_places(layout: ImageLayout) -> str | None:
    """Why the visual tokens have no known places in a scene, or None."""
    fixed = layout.fixed
    if fixed is None or fixed.num_crops > 1:
        return "its images are cut into crops, or have different numbers of visual tokens"
    if not fixed.regular or prod(layout.grid) != fixed.num_tokens:
        return "its visual tokens are not the cells of one grid"
    height, width = layout.transform.size
    return None if height == width else f"its encoder reads images of {width} x {height} pixels, and scenes are square"


def _made_with(run: Run, stage: str, dataset: Scenes) -> dict:
    """What decides the result of a run."""
    return dict(
        version=VERSION,
        weights=weights_digest(run.work_dir, stage),
        scenes=f"{dataset.made} {len(dataset.scenes)} {dataset.fingerprint()}",
        drawings=painter(),
    )


def _layers(pretrained: Pretrained) -> int:
    """The number of hidden states: the input of the first block, and the output of each block."""
    return pretrained.model.llm.num_layers + 1


def _steps(pretrained: Pretrained, dataset: Scenes) -> int:
    """The number of steps of `probe`: scenes, classifiers, and questions for the attention."""
    classifiers = sum(len(own) for own in rows_of(dataset.scenes).values())
    return len(dataset.scenes) + _layers(pretrained) * classifiers + len(_asked(dataset))


def probe(pretrained: Pretrained, dataset: Scenes, *, done: Callable[[int], object]) -> dict:
    """All probes of one model on the scenes of a data set. done: gets the number of steps since its last call.

    Returns a dict with these entries:

    - probes: by name, ``scenes`` (the scene of each row of the test part), ``right`` (1 or 0 by layer and row),
      ``guess`` (1 or 0 by row: whether the most frequent class is right) and ``penalties`` (by layer and classifier)
    - attention: ``scenes`` (the scene of each question), ``image`` (by layer and question: the share of the answer's
      attention that is on visual tokens), and for questions about one place ``asked_scenes`` and ``asked`` (the part
      of the image's attention that is on the plate of the asked object), with ``area`` (the plate's part of the
      image); None if the LLM has no attention weights, or no question was asked
    """
    pretrained.model.eval()
    part_I, rows = parts_of(len(dataset.scenes)), rows_of(dataset.scenes)
    covered_GN = coverage(pretrained.model.encoder.grid)
    states = _states(pretrained, dataset, covered_GN, done)
    found: dict[str, list[list[Fitted]]] = {name: [[] for _ in states] for name in PROBES}
    for layer, states_IGH in enumerate(states):
        for name in PROBES:
            for own in rows[name]:
                read_QH = states_IGH[own.scene_Q, own.region_Q]
                found[name][layer].append(fit_probe(read_QH, own.class_Q, part_I[own.scene_Q]))
                done(1)
    return dict(
        probes={
            name: dict(
                scenes=np.concatenate([own.scene_Q[part_I[own.scene_Q] == TEST] for own in rows[name]]).tolist(),
                guess=_joined(found[name][0], "guess_Q"),
                right=[_joined(fits, "right_Q") for fits in found[name]],
                penalties=[[fit.penalty for fit in fits] for fits in found[name]],
            )
            for name in PROBES
        },
        attention=_attention(pretrained, dataset, covered_GN, done),
    )


def _joined(fits: list, field: str) -> list[int]:
    return np.concatenate([getattr(fit, field) for fit in fits]).astype(int).tolist()


@torch.no_grad()
def _states(pretrained: Pretrained, dataset: Scenes, covered_GN: np.ndarray, done: Callable) -> list[Tensor]:
    """(I, G, H) for each layer: the mean state of the visual tokens of each region of each image."""
    model, number = pretrained.model, len(dataset.scenes)
    weights_GN = torch.tensor(covered_GN / covered_GN.sum(1, keepdims=True), dtype=torch.float32)
    layers: list[list[Tensor]] = [[] for _ in range(_layers(pretrained))]
    for first in range(0, number, BATCH):
        images = [open_image(dataset.image(str(i))[1]) for i in range(first, min(first + BATCH, number))]
        messages = [{"from": "human", "value": IMAGE_MARK}]
        batch = pretrained.batch([dict(images=[image], messages=messages) for image in images])
        with computing_in(pretrained.precision, model.device):
            embeds_BTH, _ = model.embed(batch)
            hidden = model.hidden(batch, embeds_BTH, set(range(len(layers))))
        for layer, kept in enumerate(layers):
            states_INH = hidden[layer][batch.visual_position_V].float().cpu().unflatten(0, (len(images), -1))
            kept.append(weights_GN @ states_INH)
        done(len(images))
    return [torch.cat(layers.pop(0)) for _ in range(len(layers))]  # pop: no two copies of all layers


def _asked(dataset: Scenes) -> list[dict]:
    """The questions of the first scenes of the test part."""
    chosen = {str(i) for i in np.flatnonzero(parts_of(len(dataset.scenes)) == TEST)[:ATTENDED]}
    return [record for record in dataset.records if record["image"] in chosen]


def _attention(pretrained: Pretrained, dataset: Scenes, covered_GN: np.ndarray, done: Callable) -> dict | None:
    """See `probe`. The attention to a cell is taken as even over its area."""
    asked = _asked(dataset)
    if not asked or not hasattr(pretrained.model.llm, "attention"):
        return None
    images, places, on_image, on_asked = [], [], [], []
    for record in asked:
        scene = int(record["image"])
        image = open_image(dataset.image(record["image"])[1])
        try:
            weights_LN = answer_attention(pretrained, [image], record["conversations"])
        except ValueError as error:
            logger.warning("the attention is not measured: %s", error)
            return None
        weights_LN = weights_LN.reshape(len(weights_LN), -1).astype(float)
        share_L = weights_LN.sum(1)
        images.append(scene)
        on_image.append(share_L)
        if (place := asked_place(record["conversations"][0]["value"])) is not None:
            places.append(scene)
            # A layer with a sliding window may see no visual token.
            on_asked.append(np.divide(weights_LN @ covered_GN[place], share_L, out=0 * share_L, where=share_L > 0))
        done(1)
    return dict(
        scenes=images,
        image=np.round(np.stack(on_image, 1), 5).tolist(),
        asked_scenes=places,
        asked=np.round(np.stack(on_asked, 1), 5).tolist() if on_asked else [],
        area=float(covered_GN[0].mean()),
    )
