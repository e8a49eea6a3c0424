"""Images in their own resolution, from the file to the answer: trained, resumed, cached, packed, evaluated, shown."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from native_helpers import MOST, SIZES, native_config, noise
from run_helpers import ROOT, call_tool
from safetensors.torch import load_file

import asvr
from asvr.data.llava import LlavaDataset
from asvr.demo.maps import answer_attention, as_seen, target_maps
from asvr.demo.session import Demo
from asvr.engine.run import run
from asvr.interchange.export import export_llava
from asvr.profiling.dry_run import dry_run

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


def test_codebooks_are_fitted_on_what_images_fill(folder, trained):
    """Not on the zeros behind it."""
    (file,) = (trained / "tokenizers").glob("*/tokenizer.safetensors")
    first = next(value for key, value in load_file(file).items() if key.endswith("codebooks.0.weight"))
    assert first.abs().sum(1).min() > 0.1


@pytest.mark.parametrize(
    "options",
    [{"data.pack": True}, {"data.pack": dict(max_tokens=160, max_images=3)}, {"data.group": "length"}],
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
    demo.show(session, tmp_path / "image.png")
    figure, decoded = demo.target_pictures(session)
    assert figure is not None and decoded == []


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_aspect": "pad"}, "data.image_aspect='pad' .*own resolution: leave it out"),
        ({"model.projector.positions": True}, "model.projector.positions=True .*its tokens are no square"),
        (
            {"model.reconstruction.0.tokenizer.encoder": dict(type="NaFlexEncoder", name="tower")},
            "SemanticTokenizer.encoder: NaFlexEncoder reads images in their own resolution",
        ),
        (
            {"model.reconstruction.0.tokenizer.decoder": dict(channels=8)},
            "SemanticTokenizer.decoder is for images of one size",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_told_before_a_run(changes, message, folder, tmp_path):
    changes = dict(changes)
    for key, value in changes.items():
        if isinstance(value, dict) and "name" in value:
            changes[key] = dict(value, name=str(folder / "tower"))
    with pytest.raises(ValueError, match=message) as error:
        run(native_config(folder, changes), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "train").exists()


def test_a_llava_folder_is_refused(trained, tmp_path):
    source = asvr.load(trained, device="cpu")
    with pytest.raises(ValueError, match=r"its encoder is NaFlexEncoder \(siglip2_vision_model\)"):
        export_llava(source, tmp_path / "llava")
