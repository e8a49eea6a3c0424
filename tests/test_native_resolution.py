"""Images in their own resolution, from the file to the answer: trained, resumed, cached, packed, evaluated, shown."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from native_helpers import MOST, SIZES, TOWER, native_config, noise
from run_helpers import ROOT, call_tool
from safetensors.torch import load_file

import asvr
from asvr.data.layouts import ImageLayout, Layout
from asvr.data.llava import LlavaDataset
from asvr.demo.maps import answer_attention, as_seen, target_maps
from asvr.demo.session import Demo, read_upload
from asvr.engine.run import run
from asvr.interchange.export import export_llava
from asvr.models.tokenizers import SemanticTokenizer
from asvr.profiling.dry_run import dry_run
from asvr.profiling.plain import check_objective
from asvr.recipe.config import load_config
from asvr.recipe.preflight import check_sizes
from asvr.recipe.recipe import Recipe
from asvr.registry import LAYOUTS

STEPS = 4
FEATURES = {
    "custom_imports": dict(imports=["examples.feature_target"], allow_failed_imports=False),
    "model.reconstruction": [dict(name="features", type="CosineFeatures", tap=1, shift=1)],
}
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The work dir of a run, with its figures and its count of FLOPs."""
    run(native_config(folder), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def named(folder, trained) -> list[dict]:
    """The target with the tokenizer that the run fitted, for runs that fit none."""
    (tokenizer,) = (trained / "tokenizers").iterdir()
    entry = native_config(folder).model.reconstruction[0].to_dict()
    del entry["fit"]
    return [dict(entry, tokenizer=dict(entry["tokenizer"], name=str(tokenizer)))]


def lines(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(work_dir / "train" / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors")


def curve(work_dir: Path) -> list[tuple]:
    return [tuple(line[key] for key in ("step", "loss", "loss_text", "grad_norm")) for line in lines(work_dir)]


def losses(folder: Path, work_dir: Path, **options) -> list[float]:
    run(native_config(folder, {"evaluation": None} | options), work_dir)
    return [line["loss"] for line in lines(work_dir)]


def grids(model) -> list[tuple[int, int]]:
    found = [model.encoder.transform.grid_of(size) for size in SIZES]
    assert len(set(found)) > 4 and len({rows * columns for rows, columns in found}) > 2
    return found


def test_it_trains_and_evaluates_each_image_by_its_own_grid(trained):
    found = lines(trained)
    assert [line["step"] for line in found] == [1, 2, 3, 4] and all(line["loss_semantic"] > 0 for line in found)
    model = asvr.load(trained, device="cpu").model
    result = json.loads((trained / "results.json").read_text())["train"]
    assert len(result["codes"]["semantic"]) == 2 and result["codes_by_place"] == {}
    maps = {Path(example["image"]).stem: example["maps"]["semantic"] for example in result["examples"]}
    of_image = {str(i): grid for i, grid in enumerate(grids(model))}
    assert maps and all((len(own), len(own[0])) == of_image[name] for name, own in maps.items())
    assert (trained / "summary.png").is_file()


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(folder, trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "train" / "done.json").unlink()
    shutil.rmtree(copy / "train" / "checkpoints" / f"step_{STEPS:08d}")
    run(native_config(folder), copy)
    whole, resumed = weights(trained), weights(copy)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert curve(copy) == curve(trained)


@pytest.mark.parametrize("cache", [False, True, "codes"])
def test_cached_and_online_are_the_same_bit_by_bit(cache, folder, trained, named, tmp_path):
    options = {"data.cache": cache, "model.reconstruction": named}
    run(native_config(folder, options | {"evaluation": None}), tmp_path / "run")
    assert curve(tmp_path / "run") == curve(trained)


@pytest.fixture
def fitted_on(monkeypatch) -> list[torch.Tensor]:
    """The features that tokenizers are fitted on from here on."""
    found, fit = [], SemanticTokenizer.fit

    def noted(self, batches, **options):
        def seen():
            for batch in batches:
                found.append(batch.reshape(-1, batch.shape[-1]))
                yield batch

        return fit(self, seen(), **options)

    monkeypatch.setattr(SemanticTokenizer, "fit", noted)
    return found


def test_codebooks_are_fitted_on_what_images_fill(folder, trained, fitted_on, tmp_path):
    """Not on the zeros behind it."""
    losses(folder, tmp_path / "run")
    vectors = torch.cat(fitted_on)
    assert len(vectors) == sum(rows * columns for rows, columns in grids(asvr.load(trained, device="cpu").model))
    assert len(vectors) < MOST * len(SIZES) and vectors.any(1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"data.pack": True, "data.num_workers": 1},
        {"data.pack": dict(max_tokens=160, max_images=3)},
        {"data.group": "length"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shift", [0, 1])
def test_packed_and_padded_rows_learn_the_same(options, shift, folder, tmp_path):
    own = {"model.reconstruction.0.shift": shift}
    padded = losses(folder, tmp_path / "padded", **own)
    assert losses(folder, tmp_path / "other", **own | options) == pytest.approx(padded, rel=2e-4)


def test_micro_batches_learn_the_same(folder, trained, tmp_path):
    whole = [line["loss"] for line in lines(trained)]
    assert losses(folder, tmp_path / "run", **{"data.micro_batch": 1}) == pytest.approx(whole, rel=2e-4)


@pytest.mark.parametrize("supervise", [3, dict(every=4), dict(cells=[0, 5, 11])], ids=str)
def test_some_tokens_of_each_image_may_carry_the_loss(supervise, folder, tmp_path):
    found = losses(folder, tmp_path / "run", **{"model.reconstruction.0.supervise": supervise})
    assert len(found) == STEPS and all(loss > 0 for loss in found)


def test_a_trained_encoder_moves(folder, tmp_path):
    options = {"stages.train.train": ["projector", "heads", "llm", "encoder"], "data.cache": False} | FEATURES
    losses(folder, tmp_path / "run", **options)
    before = load_file(folder / "tower" / "model.safetensors")
    after = {key.removeprefix("encoder.model."): value for key, value in weights(tmp_path / "run").items()}
    key = next(key for key in before if key.endswith("position_embedding.weight"))
    assert not torch.equal(after[key.removeprefix("vision_model.")], before[key])


def test_a_target_of_ones_own_copes(folder, tmp_path):
    run(native_config(folder, FEATURES), tmp_path / "cached")
    run(native_config(folder, FEATURES | {"data.cache": False}), tmp_path / "online")
    assert curve(tmp_path / "cached") == curve(tmp_path / "online")
    pretrained = asvr.load(tmp_path / "cached", device="cpu", trust_custom_imports=True)
    for size, grid in zip(SIZES, grids(pretrained.model), strict=True):
        (own,) = target_maps(pretrained, noise(size))
        assert own.values_RC["cosine"].shape == grid


def test_it_answers_and_shows_what_it_sees(trained, tmp_path):
    pretrained = asvr.load(trained, device="cpu")
    pretrained.save_pretrained(tmp_path / "model")
    again = asvr.load(tmp_path / "model", device="cpu")
    assert again.model.encoder.transform == pretrained.model.encoder.transform
    asked = [{"from": "human", "value": "<image>\nhow large is it?"}]
    prompts = [dict(images=[noise(size)], messages=asked) for size in SIZES]
    together = pretrained.generate(prompts, max_new_tokens=3)
    assert together == [pretrained.generate([prompt], max_new_tokens=3)[0] for prompt in prompts]
    assert together == again.generate(prompts, max_new_tokens=3)
    for size, (rows, columns) in zip(SIZES, grids(pretrained.model), strict=True):
        image, answered = noise(size), [*asked, {"from": "gpt", "value": "small"}]
        (own,) = target_maps(pretrained, image)
        assert own.right_RCD.shape == own.probability_RCD.shape == (rows, columns, 2)
        assert answer_attention(pretrained, [image], answered).shape == (2, rows, columns)
        seen = as_seen(pretrained, image)
        assert seen.height * columns == seen.width * rows and max(seen.size) >= 400


def test_the_demo_shows_it(trained, tmp_path):
    demo = Demo(asvr.load(trained, device="cpu"), max_new_tokens=3)
    session = demo.session()
    noise((300, 100)).save(tmp_path / "image.png")
    demo.show(session, read_upload(tmp_path / "image.png"))
    panels, decoded = demo.target_panels(session)
    assert panels and decoded == []


def test_a_sample_is_cut_by_its_own_image(folder, trained, tmp_path):
    """The tokens that a small grid leaves are the text's."""
    source = asvr.load(trained, device="cpu")
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a long answer " * 20}]
    records = [dict(image=f"{i}.png", conversations=talk) for i in range(len(SIZES))]
    (tmp_path / "long.json").write_text(json.dumps(records))
    data = LlavaDataset(
        ann_file=str(tmp_path / "long.json"),
        image_folder=str(folder / "images"),
        tokenizer=source.text_tokenizer,
        template=source.template,
        max_length=60,
        num_image_tokens=source.model.layout.per_image,
    )
    for i, (rows, columns) in enumerate(grids(source.model)):
        assert len(data[i]["input_ids"]) - 1 + rows * columns == 60


def test_data_are_checked_and_the_largest_image_is_counted(folder, tmp_path):
    native_config(folder)
    done = call_tool("tools/check_data.py", folder / "config.py", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    told = dry_run(native_config(folder))
    assert "cannot" not in told and str(MOST) in told


OTHER = dict(
    arch=dict(
        model_type="clip_vision_model",
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
)


class Halves(ImageLayout):
    """Of a user's own."""

    def largest(self) -> Layout:
        return Layout(np.arange(4), ((2, 2),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_aspect": "pad"}, "data.image_aspect='pad' .*own resolution: set it to 'square'"),
        ({"model.projector.positions": True}, "model.projector.positions=True .*its tokens are no square"),
        ({"model.layout": dict(type="Halves")}, "model.layout.type='Halves' .*leave the layout out"),
        (
            {
                "model.reconstruction.0.tokenizer.encoder": dict(type="HFVisionEncoder", **OTHER),
                "model.reconstruction.0.resample": "nearest",
            },
            r"model.reconstruction\[0\] .*its tokenizer crops images",
        ),
        (
            {
                "model.reconstruction.0.tokenizer.encoder": dict(
                    type="NaFlexEncoder", arch=dict(TOWER, model_type="siglip2_vision_model")
                ),
                "model.reconstruction.0.resample": "nearest",
            },
            r"model.reconstruction\[0\].tokenizer.encoder .*have other cells than the model's encoder",
        ),
        (
            {"model.reconstruction.0.tokenizer.decoder": dict(layers=1)},
            "SemanticTokenizer.decoder needs images of one size",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_go_with_it_is_told_before_a_run(changes, message, folder, monkeypatch):
    monkeypatch.setitem(LAYOUTS.module_dict, "Halves", Halves)
    config = native_config(folder)
    config.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message) as error:
        check_sizes(Recipe(config))
    assert "\n" not in str(error.value)


def test_a_llava_folder_is_refused(trained, tmp_path):
    source = asvr.load(trained, device="cpu")
    with pytest.raises(ValueError, match=r"its encoder is NaFlexEncoder \(siglip2_vision_model\)"):
        export_llava(source, tmp_path / "llava")


def test_a_tokenizer_is_fitted_ahead_and_named(folder, trained, fitted_on, tmp_path):
    """By the command for it, on what images fill."""
    config = tmp_path / "tokenizer.py"
    encoder = native_config(folder).model.encoder.to_dict()
    config.write_text(
        f"tokenizer = dict(type='SemanticTokenizer', depth=2, codebook_size=8, encoder={encoder!r})\n"
        f"data = dict(type='ImageFolder', root={str(folder / 'images')!r})\n"
        "fit = dict(batch_size=4, vectors_per_code=2, iterations=2)\n"
    )
    done = call_tool("tools/train_tokenizer.py", config, "--work-dir", tmp_path / "work")
    assert done.returncode == 0, done.stdout + done.stderr
    vectors = torch.cat(fitted_on)
    assert len(vectors) == sum(rows * columns for rows, columns in grids(asvr.load(trained, device="cpu").model))
    assert vectors.any(1).all()
    entry = native_config(folder).model.reconstruction[0].to_dict()
    del entry["fit"]
    named = dict(entry, tokenizer=dict(entry["tokenizer"], name=str(tmp_path / "work/tokenizer")))
    assert losses(folder, tmp_path / "run", **{"model.reconstruction": [named], "data.cache": False})


def test_the_released_step_has_no_such_images(folder):
    with pytest.raises(ValueError, match="--plain: in the released code all images have the same number of tokens"):
        check_objective(check_sizes(Recipe(native_config(folder)))["train"])


def test_the_configs_encoder_is_that_of_its_tokenizer(monkeypatch):
    """As the README says; and its stages are right."""
    monkeypatch.setattr("asvr.base.hub.resolve", lambda name: None)
    config = load_config("configs/examples/naflex.py")
    assert config.model.encoder == load_config("configs/tokenizers/siglip2_naflex_rvq8.py").tokenizer.encoder
    model = check_sizes(Recipe(config))["finetune"]
    transform = model.encoder.transform
    assert [transform.grid_of(size) for size in ((640, 480), (300, 1200))] == [(14, 18), (32, 8)]
    assert model.targets[0].shares_encoder and model.layout.largest().num_tokens == 256
