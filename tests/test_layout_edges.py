"""What a layout of images must not change, hide or break: caches, reports, weights of separators, later stages."""

import shutil

import numpy as np
import pytest
import torch
from parallel_helpers import make_config, train
from PIL import Image
from run_helpers import read_metrics
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from vlm_helpers import ENCODER, LLAMA, SEMANTIC, VOCAB, build, collate, row

from asvr.caches.features import build_feature_cache
from asvr.data.layouts import AnyRes, Layout, WholeImage, crop_keys
from asvr.demo.maps import answer_attention, as_seen
from asvr.flops.step import StepFlops
from asvr.loading import load
from asvr.models.targets import Seen, nearest_cells
from asvr.models.vlm import VLM
from asvr.profiling.dry_run import dry_run
from asvr.profiling.plain import check_objective
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe
from asvr.registry import LAYOUTS

CPU = torch.device("cpu")
TILES = dict(type="AnyRes", grids=[(1, 2), (2, 2)])
STRIPES = dict(type="AnyRes", grids=[(3, 3)], overview=False)  # of a flat image two rows of tiles are padding alone
WIDE, TALL = Image.new("RGB", (16, 9), (200, 30, 30)), Image.new("RGB", (9, 16), (30, 200, 30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("edges"), positions=128)


def samples() -> list[dict]:
    return [dict(row("bwiw"), images=[image]) for image in (WIDE, TALL)]


class CentreHalf(WholeImage):
    def crops(self, image):
        width, height = image.size
        return [image.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4))]


def test_a_layout_that_crops_has_a_cache_of_its_own(tmp_path):
    model, picture = build(reconstruction=[]), Image.linear_gradient("L").convert("RGB")
    found = [
        build_feature_cache(tmp_path, model.encoder, dict(a=picture), "square", CPU, config={}, layout=layout)
        for layout in (WholeImage(encoder=model.encoder), CentreHalf(encoder=model.encoder), None)
    ]
    assert found[0].folder == found[2].folder != found[1].folder
    assert not torch.equal(found[0].features(["a"]), found[1].features(["a"]))


def test_a_layout_of_ones_own_is_known_by_its_source(monkeypatch):
    layout = CentreHalf(encoder=build(reconstruction=[]).encoder)
    before = layout.crops_key()
    monkeypatch.setattr("asvr.base.text.inspect.getsource", lambda kind: "class CentreHalf: other crops")
    assert layout.crops_key() != before


def test_a_newline_changes_no_cache_and_padding_no_crop():
    encoder = build(reconstruction=[]).encoder
    plain, bare, padded = (AnyRes(encoder=encoder, **own) for own in ({}, dict(newline=False), dict(unpad=False)))
    assert plain.crops_key() == bare.crops_key() == padded.crops_key()
    assert plain.cells_key() == bare.cells_key() != padded.cells_key()


def test_crops_of_two_images_have_keys_of_their_own():
    names = ["x", "x#1", "x 1"]
    keys = [key for name in names for key in crop_keys(name, 3)]
    assert len(set(keys)) == len(keys) == 9


def test_a_dry_run_tells_each_stage_by_its_own_layout(folder):
    shared = {"data.max_length": 100, "data.cache": False}  # so the text of a sample has the same length in both
    mixed = dry_run(load_config(folder, {"stages.finetune.model.layout": TILES} | shared))
    both = dry_run(load_config(folder, {"model.layout": TILES} | shared))
    assert "WholeImage, pretrain" in mixed and "AnyRes, finetune" in mixed and "separators" in mixed
    assert "(pretrain 4, finetune 24 tokens)" in " ".join(mixed.split())

    def sums(text: str) -> list[str]:
        line = next(line for line in text.splitlines() if "│ sum" in line and text.index(line) > text.index("FLOPs of"))
        return [cell.strip() for cell in line.strip("│ ").split("│")]

    assert sums(mixed)[-1] == sums(both)[-1] and sums(mixed)[-2] != sums(both)[-2]


def test_flops_of_heads_follow_the_positions_that_carry_a_loss(folder):
    stage = Recipe(load_config(folder, {"model.layout": TILES, "data.max_length": 100})).stages["finetune"]
    flops, model = StepFlops(stage), build(reconstruction=[SEMANTIC], layout=TILES)
    batch = collate(model, samples())
    cells = batch.num_images * batch.num_cells
    assert batch.num_visual_targets(1) < cells
    parts, whole = flops.by_part([batch]), {part.name: part.flops for part in flops.parts}
    heads = [name for name in whole if "head " in name or "classifiers" in name]
    assert len(heads) == 2
    for name in heads:
        wanted = 3 * whole[name] * batch.num_visual_targets(1) / (flops.crops * batch.num_cells)
        assert parts[name] == pytest.approx(wanted, rel=1e-6)


def test_means_leave_padding_out():
    model = build(layout=STRIPES)
    batch = collate(model, [dict(row("bwiw"), images=[Image.new("RGB", (60, 8))]), *samples()])
    states = torch.ones(batch.input_ids_BT.numel(), 3)
    seen = Seen(batch=batch, hidden={-1: states}, features_INE=None, training=True)
    has_I = seen.has_tokens_I
    assert not has_I.all() and has_I.sum() == batch.num_images_with_tokens < batch.num_images
    assert torch.equal(seen.means(), has_I[:, None].float().expand(-1, 3))


def test_the_denoising_example_learns_from_no_padding():
    import examples.denoising_target  # noqa: F401

    entry = dict(name="latents", type="DenoisedLatents")
    model = build(reconstruction=[entry], layout=STRIPES)
    batch = collate(model, [dict(row("bwiw"), images=[Image.new("RGB", (60, 8), (9, 9, 9))])])
    assert model.count_targets([batch])["latents"] == batch.num_images_with_tokens < batch.num_images


@pytest.mark.parametrize("train", [["projector"], ["projector.mlp*", "heads"]])
def test_separators_are_trained_with_any_part_of_the_projector(train):
    assert build(layout=TILES, train=train).separators.weight.requires_grad


def test_new_separators_that_stay_as_they_are_drawn_are_told(folder, tmp_path, quick):
    changes = {"data.cache": False, "model.reconstruction": [], "data.on_error": "skip", "data.max_length": 100}
    changes |= {"stages.pretrain.train": ["projector"], "stages.finetune.train": ["llm"]}
    train(folder, tmp_path / "run", changes | {"stages.finetune.model.layout": TILES})
    told = (tmp_path / "run" / "train.log").read_text()
    assert "has no separators of model.layout. The new ones are random, and this stage does not train them" in told


def test_tiles_may_be_followed_by_whole_images(folder, tmp_path, quick):
    changes = {"data.cache": False, "model.reconstruction": [], "evaluation": None, "data.max_length": 100}
    changes["data.on_error"] = "skip"
    changes |= {"stages.pretrain.model.layout": TILES, "stages.pretrain.train": ["projector"]}
    changes |= {"stages.finetune.train": ["projector", "llm"]}
    train(folder, tmp_path / "run", changes)
    last = load_file(tmp_path / "run/finetune/checkpoints/step_00000004/model.safetensors")
    first = load_file(tmp_path / "run/pretrain/checkpoints/step_00000002/model.safetensors")
    assert "separators.weight" in first and "separators.weight" not in last


def test_the_released_way_of_training_sees_images_whole():
    with pytest.raises(ValueError, match="--plain: in the released code all images have the same number of tokens"):
        check_objective(build(layout=TILES))


def test_without_an_overview_maps_are_those_of_the_crop_that_is_shown(folder, tmp_path, quick):
    layout = dict(TILES, overview=False)
    work_dir = tmp_path / "run"
    changes = {"model.layout": layout, "data.max_length": 100, "evaluation.num_examples": 2}
    results = train(folder, work_dir, changes)
    found = results.get("stages", results)["finetune"]
    assert found["codes_by_place"] == {} and all(example["maps"] == {} for example in found["examples"])
    model = load(work_dir, device="cpu")
    halves = Image.new("RGB", (16, 8), (0, 0, 0))
    halves.paste((255, 255, 255), (8, 0, 16, 8))
    assert np.asarray(as_seen(model, halves)).mean() < 20
    talk = [{"from": "human", "value": "<image>\nwhat is 3?"}, {"from": "gpt", "value": "word"}]
    shown = answer_attention(model, [Image.new("RGB", (60, 8))], talk)
    assert shown.shape == (2, 2, 2)


def test_codebooks_are_fitted_on_cells_that_have_a_token(folder, tmp_path, quick, monkeypatch):
    seen = []
    from asvr.models.tokenizers import SemanticTokenizer

    original = SemanticTokenizer.fit

    def fit(self, batches, **own):
        kept = list(batches)
        seen.append(sum(batch.reshape(-1, batch.shape[-1]).shape[0] for batch in kept))
        return original(self, iter(kept), **own)

    monkeypatch.setattr(SemanticTokenizer, "fit", fit)
    for i, unpad in enumerate((True, False)):
        changes = {"model.layout": dict(TILES, unpad=unpad), "data.max_length": 100, "stages.finetune": None}
        changes = {key: value for key, value in changes.items() if value is not None}
        train(folder, tmp_path / str(i), changes | {"schedule.steps": 2, "stages.pretrain.schedule.steps": 1})
    assert 0 < seen[0] < seen[1]


def test_cells_are_found_the_same_whoever_asks_first():
    with FakeTensorMode():
        nearest_cells((5, 3), (7, 7))
    with torch.inference_mode():
        nearest_cells((5, 4), (7, 7))
    for grid in ((5, 3), (5, 4)):
        found = nearest_cells(grid, (7, 7))
        assert type(found) is torch.Tensor and not found.is_inference()


class Pairs(WholeImage):
    """Each image twice, as two crops; a separator is learned but never stands anywhere."""

    num_separators = 1

    def __call__(self, size=None):
        return Layout(np.arange(2 * self.num_cells), (self.grid,) * 2, regular=True)

    def crops(self, image):
        return [image, image]

    def largest(self):
        return self()

    @property
    def fixed(self):
        return self()


def test_layouts_of_ones_own_need_not_be_careful():
    LAYOUTS.register_module(module=Pairs, name="Pairs")
    try:
        model = build(layout=dict(type="Pairs"))
    finally:
        LAYOUTS.module_dict.pop("Pairs")
    batch = collate(model, samples())
    assert batch.crops == [2, 2] and batch.num_visual_targets(0) == 16
    out = model(batch, model.count_targets([batch]))
    out["loss"].backward()
    assert model.separators.weight.grad is not None and (model.separators.weight.grad == 0).all()


def test_a_whole_image_that_is_named_is_the_one_that_is_not(folder, tmp_path, quick):
    train(folder, tmp_path / "plain", {})
    shutil.copytree(tmp_path / "plain/tokenizers", tmp_path / "named/tokenizers")
    train(folder, tmp_path / "named", {"stages.finetune.model.layout": dict(type="WholeImage")})
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("plain", "named")]
    assert losses[0] == losses[1]


def test_tiles_do_not_change_what_else_is_drawn():
    found = []
    for layout in (TILES, None):
        torch.manual_seed(0)
        parts = dict(encoder=ENCODER, projector=dict(type="MLPProjector"), llm=dict(type="HFCausalLM", arch=LLAMA))
        found.append(VLM(**parts, reconstruction=[SEMANTIC], layout=layout, vocab_size=VOCAB).state_dict())
    with_tiles, without = found
    assert with_tiles.keys() - without.keys() == {"separators.weight"}
    assert all(torch.equal(value, with_tiles[key]) for key, value in without.items())
