import json
import shutil

import pytest
import torch
from PIL import Image
from run_helpers import ROOT

from asvr.data.image_folder import ImageFolder
from asvr.models.tokenizers.pixel import PixelTokenizer
from asvr.models.tokenizers.semantic import SemanticTokenizer
from asvr.tokenizer_training.run import run_config
from asvr.tokenizer_training.training import fit_semantic_tokenizer, train_pixel_tokenizer

ARCH = dict(
    base_channels=64, channel_multiplier=[1, 1], num_res_blocks=0, latent_channels=32, num_embeddings=16, embed_dim=4
)
QUICK = dict(steps=60, batch_size=8, held_out=8, log_interval=1, lr=2e-3)


def train(folder, work_dir, **kwargs):
    torch.manual_seed(0)
    tokenizer = PixelTokenizer(image_size=8, arch=ARCH)
    report = train_pixel_tokenizer(tokenizer, ImageFolder(root=str(folder)), work_dir=work_dir, **QUICK | kwargs)
    rows = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return tokenizer, report, rows


def test_a_short_training_lowers_the_loss(picture_folder, tmp_path):
    tokenizer, report, rows = train(picture_folder, tmp_path)
    first, last = ([row["l2"] for row in part] for part in (rows[:5], rows[-5:]))
    assert sum(last) < 0.8 * sum(first)
    untrained = train(picture_folder, tmp_path, steps=1, lr=1e-9)[1]
    assert report["psnr"] > untrained["psnr"] + 0.5
    assert report["relative_error"][0] < 0.9 * untrained["relative_error"][0]
    assert report["usage"][0] > 25 and 1 < report["perplexity"][0] <= 16
    assert tokenizer.fitted and not tokenizer.training
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.size[0] > picture.size[1]


def test_optional_terms_are_trained_with(picture_folder, tmp_path):
    _, _, rows = train(
        picture_folder,
        tmp_path,
        steps=4,
        plain_ratio=0.25,
        perceptual=dict(encoder=dict(type="TinyPatchEncoder"), weight=0.5),
        adversarial=dict(weight=0.1, start=2, adaptive=True),
    )
    assert all(row["perceptual"] > 0 for row in rows)
    assert ["discriminator" in row for row in rows] == [False, False, True, True]
    assert ["codebook" in row for row in rows] == [False, True, True, True]  # plain_ratio


def test_same_seed_same_weights(picture_folder, tmp_path):
    runs = [train(picture_folder, tmp_path / str(i), steps=3, seed=s)[0] for i, s in enumerate((5, 5, 6))]
    assert runs[0].fingerprint() == runs[1].fingerprint() != runs[2].fingerprint()


@pytest.mark.parametrize("kind", ["pixel", "semantic"])
def test_broken_pictures_are_left_out_or_named(kind, picture_folder, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(picture_folder, folder)
    for file in sorted(folder.rglob("*.png"))[:9]:
        file.write_bytes(b"no image")

    def make(on_error):
        dataset = ImageFolder(root=str(folder), on_error=on_error)
        if kind == "pixel":
            tokenizer = PixelTokenizer(image_size=8, arch=ARCH)
            return train_pixel_tokenizer(tokenizer, dataset, work_dir=tmp_path, **QUICK | dict(steps=12, batch_size=3))
        tokenizer = SemanticTokenizer(encoder=dict(type="TinyPatchEncoder"), depth=2, codebook_size=8)
        return fit_semantic_tokenizer(tokenizer, dataset, work_dir=tmp_path, batch_size=2)

    assert 0 < make("skip")["relative_error"][0] < 2
    with pytest.raises(ValueError, match="the image .*png cannot be read"):
        make("raise")


def test_too_few_pictures(picture_folder, tmp_path):
    with pytest.raises(ValueError, match="held_out=48: expected 1 to 47"):
        train(picture_folder, tmp_path, held_out=48)


def test_fit_semantic(picture_folder, tmp_path):
    def fit(i):
        tokenizer = SemanticTokenizer(encoder=dict(type="TinyPatchEncoder"), depth=2, codebook_size=8)
        dataset = ImageFolder(root=str(picture_folder))
        return tokenizer, fit_semantic_tokenizer(tokenizer, dataset, work_dir=tmp_path / str(i), batch_size=8)

    (tokenizer, report), (again, _) = fit(0), fit(1)
    assert report["pictures"] == 48 and report["relative_error"][1] < report["relative_error"][0] < 1
    assert tokenizer.fingerprint() == again.fingerprint()
    rows = [json.loads(line) for line in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    assert [row["level"] for row in rows] == [0, 1]
    assert (tmp_path / "0" / "summary.png").is_file()


SEMANTIC = """
tokenizer = dict(type='SemanticTokenizer', depth=2, codebook_size=8, encoder=dict(type='TinyPatchEncoder'))
data = dict(type='ImageFolder', root={root!r})
fit = dict(batch_size=16)
"""
PIXEL = """
tokenizer = dict(type='PixelTokenizer', image_size=8, arch={arch!r})
data = dict(type='ImageFolder', root={root!r})
train = dict(steps=2, batch_size=8, held_out=8)
"""


def write(tmp_path, text, folder):
    path = tmp_path / "config.py"
    path.write_text(text.format(root=str(folder), arch=ARCH))
    return path


@pytest.mark.parametrize("text", [SEMANTIC, PIXEL])
def test_a_config_gives_a_tokenizer_that_loads(text, picture_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("ASVR_MODEL_ZOO", raising=False)
    report = run_config(write(tmp_path, text, picture_folder), work_dir=tmp_path / "work", seed=3)
    names = {p.name for p in (tmp_path / "work").iterdir()}
    assert names == {"tokenizer", "report.json", "metrics.jsonl", "summary.png"}
    assert json.loads((tmp_path / "work" / "report.json").read_text()) == report
    if text is SEMANTIC:
        encoder = dict(type="TinyPatchEncoder")
        loaded = SemanticTokenizer(encoder=encoder, depth=2, codebook_size=8, name=report["tokenizer"])
    else:
        loaded = PixelTokenizer(image_size=8, name=report["tokenizer"])
    assert loaded.fitted and loaded.fingerprint() == report["fingerprint"]


def test_a_folder_with_other_files_is_refused_before_the_work(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("asvr.tokenizer_training.run.DATASETS", None)  # reading an image would fail
    (tmp_path / "work" / "tokenizer").mkdir(parents=True)
    (tmp_path / "work" / "tokenizer" / "notes.txt").touch()
    monkeypatch.setattr("asvr.tokenizer_training.run.check", lambda cfg: ("fit", fit_semantic_tokenizer))
    with pytest.raises(ValueError, match="work/tokenizer: has other files .*notes.txt"):
        run_config(write(tmp_path, SEMANTIC, picture_folder), work_dir=tmp_path / "work")


def test_a_name_goes_to_the_model_zoo(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path / "zoo"))
    path = write(tmp_path, SEMANTIC + "name = 'asvr/tiny'\n", picture_folder)
    run_config(path, work_dir=tmp_path / "work")
    encoder = dict(type="TinyPatchEncoder")
    assert SemanticTokenizer(encoder=encoder, depth=2, codebook_size=8, name="asvr/tiny").fitted


@pytest.mark.parametrize(
    "change, message",
    [
        ("fit.iteration=3", "fit.iteration: unknown field.*'iterations'"),
        ("fits.x=3", "fits: unknown section.*'fit'"),
        ("tokenizer.dept=3", "tokenizer.dept: .*'depth'"),
        ("tokenizer.type=SemanticTokeniser", "tokenizer.type='SemanticTokeniser'.*SemanticTokenizer"),
        ("data.type=ImageFoldr", "data.type='ImageFoldr'.*ImageFolder"),
        ("tokenizer.encoder.type=TinyPatchEncodr", "tokenizer.encoder.type=.*TinyPatchEncoder"),
    ],
)
def test_wrong_configs_are_explained(change, message, picture_folder, tmp_path):
    key, value = change.split("=")
    with pytest.raises(ValueError, match=message):
        run_config(write(tmp_path, SEMANTIC, picture_folder), work_dir=tmp_path / "w", cfg_options={key: value})
    assert not (tmp_path / "w").exists()


def test_wrong_fields_of_the_optional_terms(picture_folder, tmp_path):
    options = {"train.perceptual": dict(wieght=1), "train.adversarial": dict(strat=5)}
    with pytest.raises(ValueError, match="(?s)adversarial.strat.*'start'.*perceptual.wieght.*encoder is missing"):
        run_config(write(tmp_path, PIXEL, picture_folder), work_dir=tmp_path / "w", cfg_options=options)


def test_the_config_of_a_training_is_named_as_such(tmp_path):
    with pytest.raises(ValueError, match=r"asvr_mini.py is the config of a training: give it to asvr train"):
        run_config(ROOT / "configs/asvr_mini.py", work_dir=tmp_path / "w")
