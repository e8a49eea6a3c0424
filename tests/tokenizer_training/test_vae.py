"""Training a small VAE by the tokenizers' command."""

import json

import pytest
import torch
from run_helpers import ROOT

from asvr.data.image_folder import ImageFolder
from asvr.models.encoders import LatentEncoder
from asvr.recipe.config import load_config
from asvr.tokenizer_training.latents import train_latent_encoder
from asvr.tokenizer_training.run import check, run_config

pytest.importorskip("diffusers", reason="LatentEncoder needs it: pip install -e '.[diffusion]'")

ARCH = dict(block_out_channels=[16, 16], norm_num_groups=4, latent_channels=4)
CONFIG = """
tokenizer = dict(type='LatentEncoder', image_size=16, arch={arch!r})
data = dict(type='ImageFolder', root={root!r})
train = dict(steps=2, batch_size=8, held_out=8)
"""


def train(folder, work_dir, **options):
    torch.manual_seed(0)
    encoder = LatentEncoder(image_size=16, arch=ARCH)
    given = dict(dict(steps=60, batch_size=8, held_out=8, log_interval=1, lr=4e-3), **options)
    report = train_latent_encoder(encoder, ImageFolder(root=str(folder)), work_dir=work_dir, **given)
    return encoder, report, [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_short_training_lowers_the_loss_and_measures_the_scale(picture_folder, tmp_path):
    encoder, report, rows = train(picture_folder, tmp_path)
    first, last = (sum(row["l1"] + row["l2"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.7 * first and all(row["kl"] >= 0 for row in rows)
    assert report["relative_error"] < 1 and not encoder.training and encoder.source is None
    assert encoder.model.config.scaling_factor == report["scaling_factor"] != 0.18215
    assert encoder.model.config.shift_factor == report["shift_factor"]
    pixels = torch.stack([encoder.transform(image) for image in images(picture_folder)])
    with torch.no_grad():
        latents = encoder(pixels)
    assert latents.mean().abs() < 0.5 and 0.5 < latents.std() < 2
    assert (tmp_path / "summary.png").is_file()


def test_the_measured_scale_takes_the_place_of_one_by_channel(picture_folder, tmp_path):
    encoder = LatentEncoder(image_size=16, arch=dict(ARCH, latents_mean=[9.0] * 4, latents_std=[3.0] * 4))
    data = ImageFolder(root=str(picture_folder))
    train_latent_encoder(encoder, data, work_dir=tmp_path, steps=2, batch_size=8, held_out=8)
    with torch.no_grad():
        latents = encoder(torch.stack([encoder.transform(image) for image in images(picture_folder)]))
    assert latents.mean().abs() < 0.5 and 0.5 < latents.std() < 2


def images(folder):
    from asvr.data.images import open_image

    return [open_image(source) for _, source in ImageFolder(root=str(folder)).images()]


def test_a_higher_weight_of_the_divergence_lowers_it(picture_folder, tmp_path):
    low, high = (train(picture_folder, tmp_path, steps=30, kl_weight=w)[2][-1]["kl"] for w in (0.0, 1.0))
    assert high < 0.5 * low


def test_same_seed_same_weights(picture_folder, tmp_path):
    prints = [
        train(picture_folder, tmp_path / str(i), steps=2, seed=s)[0].fingerprint() for i, s in enumerate((5, 5, 6))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_config_gives_a_folder_that_loads(picture_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("ASVR_MODEL_ZOO", raising=False)
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(arch=ARCH, root=str(picture_folder)))
    report = run_config(file, work_dir=tmp_path / "run")
    encoder = LatentEncoder(name=str(tmp_path / "run" / "tokenizer"), grid=(2, 2), arch=None)
    assert report["fingerprint"] == encoder.fingerprint()
    assert encoder.model.config.scaling_factor == report["scaling_factor"]
    with pytest.raises(
        ValueError, match="tokenizer.imagesize: LatentEncoder has no such field; did you mean 'image_size'"
    ):
        run_config(file, cfg_options={"tokenizer.imagesize": 3})
    with pytest.raises(ValueError, match="train.plain_ratio: unknown field"):
        run_config(file, cfg_options={"train.plain_ratio": 0.1})


def test_the_scenes_vae_is_the_one_that_the_recipe_names():
    cfg, recipe = (
        load_config(ROOT / "configs" / name) for name in ("tokenizers/vae_scenes.py", "targets/scenes/ross.py")
    )
    check(cfg)
    teacher = recipe.model.reconstruction[0].teacher
    assert teacher.arch == cfg.tokenizer.arch and teacher.name.endswith("work_dirs/vae_scenes/tokenizer")
    with torch.device("meta"):
        encoder = LatentEncoder(**{key: value for key, value in cfg.tokenizer.items() if key != "type"})
    assert encoder.grid == (8, 8) and encoder.width == 16
