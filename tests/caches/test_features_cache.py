"""Features and codes from the cache are those that the model computes online."""

import pytest
import torch
from mmengine.config import Config
from vlm_helpers import ENCODER, PIXEL, RESNET, SEMANTIC, build, collate, row, step_gradients

from asvr.caches.features import build_feature_cache, folder_of
from asvr.data.batch import IMAGE_TOKEN
from asvr.data.easy_vqa import EasyVQA
from asvr.recipe.build import as_in_training

CPU = torch.device("cpu")
ENCODERS = {"hf": ENCODER, "hf bf16": dict(ENCODER, dtype="bfloat16"), "timm": RESNET}


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("easy_vqa")
    return dict(list(EasyVQA(split="train", max_images=4).images()))


def samples(pictures):
    ids = [1, IMAGE_TOKEN, 5, 6, 7]
    labels = [-100, -100, 5, 6, 7]
    return [
        dict(input_ids=ids, labels=labels, images=[file], image_keys=[key], sample_id=f"rows.json:{i}")
        for i, (key, file) in enumerate(pictures.items())
    ]


def cached(model, pictures, root, on_error="raise"):
    cache = build_feature_cache(root, model.encoder, pictures, "square", CPU, config={}, on_error=on_error)
    for target in model.targets:
        cache.add_truth(target, images=pictures, aspect="square", device=CPU, config={})
    return cache


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_codes_and_gradients_are_bitwise_the_same(encoder, pictures, tmp_path):
    pixel = dict(PIXEL, resample="nearest")
    model = build(encoder=ENCODERS[encoder], reconstruction=[SEMANTIC, pixel])
    online = collate(model, samples(pictures))
    stored = collate(model, samples(pictures), cache=cached(model, pictures, tmp_path))
    assert set(online.pixels) == {"encoder", "pixel"} and not online.truth
    assert stored.pixels == {} and set(stored.truth) == {"pixel", "semantic"}
    features = [model.embed(batch)[1] for batch in (online, stored)]
    assert torch.equal(*features) and features[0].dtype == features[1].dtype
    for target in model.targets:
        found = (model.truth(target, *own) for own in zip((online, stored), features, strict=True))
        assert torch.equal(*(target.codes(truth) for truth in found))
    (first, first_logs), (second, second_logs) = (step_gradients(model, [batch]) for batch in (online, stored))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first_logs[name], second_logs[name]) for name in first_logs)


def test_a_cache_is_read_again_and_opens_no_picture(pictures, tmp_path):
    model = build()
    first = cached(model, pictures, tmp_path)
    model.encoder.forward = lambda pixels: pytest.fail("encoded again")
    second = cached(model, pictures, tmp_path)
    keys = list(reversed(pictures))
    assert first.folder == second.folder and torch.equal(first.features(keys), second.features(keys))
    assert torch.equal(first.truth("semantic", keys)["codes"], second.truth("semantic", keys)["codes"])
    assert torch.equal(first.features(keys), first.features(list(pictures)).flip(0))
    missing = [dict(sample, images=["no/such/file.png"]) for sample in samples(pictures)]
    assert collate(model, missing, cache=second).num_images == len(pictures)


def test_the_folder_follows_what_the_features_depend_on(pictures, tmp_path):
    key, file = next(iter(pictures.items()))
    copy = tmp_path / "copy.png"
    copy.write_bytes(file.read_bytes())
    model, other = build(), build(seed=1)
    same = folder_of(tmp_path, model.encoder, {key: copy}, "square", {})
    assert same == folder_of(tmp_path, model.encoder, {key: file}, "square", {})
    assert same != folder_of(tmp_path, other.encoder, {key: copy}, "square", {})
    assert same != folder_of(tmp_path, model.encoder, {key: copy}, "pad", {})
    assert same != folder_of(tmp_path, model.encoder, {"other": copy}, "square", {})
    assert same != folder_of(tmp_path, model.encoder, {key: copy}, "square", dict(layer=-1))
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(bytes(data))
    assert same != folder_of(tmp_path, model.encoder, {key: copy}, "square", {})


def test_codes_follow_their_tokenizer(pictures, tmp_path):
    model, other = build(), build()
    other.targets[0].tokenizer.fit([torch.randn(64, 4, 8)], progress=False)
    cache = cached(model, pictures, tmp_path)
    before = cache.truth("semantic", list(pictures))["codes"]
    again = cached(other, pictures, tmp_path)
    assert again.folder == cache.folder
    assert not torch.equal(before, again.truth("semantic", list(pictures))["codes"])


def test_codes_follow_the_size_that_their_tokenizer_sees(pictures, tmp_path):
    """Its weights are the same at every size."""
    sizes = []
    for image_size in (4, 8):
        tokenizer = dict(PIXEL["tokenizer"], image_size=image_size)
        model = build(reconstruction=[dict(PIXEL, tokenizer=tokenizer, resample="nearest")])
        sizes.append(cached(model, pictures, tmp_path).truth("pixel", list(pictures))["codes"].shape[1])
    assert sizes == [4, 16]


def test_a_picture_that_the_cache_does_not_have_is_named(pictures, tmp_path):
    model = build()
    cache = cached(model, pictures, tmp_path)
    with pytest.raises(ValueError, match=r"no features of 9-0 \(1 images\)"):
        collate(model, [row("biww", 9)], cache=cache)


@pytest.fixture
def damaged(pictures, tmp_path):
    """The images, of which the second is cut off and the third is gone."""
    files = dict(pictures)
    _, second, third, *_ = files
    files[second] = tmp_path / "cut.png"
    files[second].write_bytes(pictures[second].read_bytes()[:60])
    files[third] = tmp_path / "gone.png"
    return files


def test_pictures_that_cannot_be_read_are_refused_with_their_samples(damaged, tmp_path, caplog):
    model = build(reconstruction=[SEMANTIC, dict(PIXEL, resample="nearest")])
    whole = [key for key, file in damaged.items() if file.parent != tmp_path]
    for _ in range(2):  # computed, and read again
        cache = cached(model, damaged, tmp_path / "cache", on_error="skip")
        assert "2 of 4 images are left out, first: the image" in caplog.text
        caplog.clear()
    batch = collate(model, samples(damaged), cache=cache, on_error="skip")
    assert batch.num_images == 2 and not batch.pixels
    assert torch.equal(batch.features_INE, cached(model, {k: damaged[k] for k in whole}, tmp_path).features(whole))
    assert [(r.sample_id, r.reason) for r in batch.refusals] == [
        ("rows.json:1", "unreadable image"),
        ("rows.json:2", "missing image"),
    ]
    with pytest.raises(ValueError, match="rows.json:1: the image .*cut.png cannot be read"):
        collate(model, samples(damaged), cache=cache)


def test_a_picture_that_cannot_be_read_is_told_by_default(damaged, tmp_path):
    with pytest.raises(ValueError, match="the image .*cut.png cannot be read"):
        cached(build(), damaged, tmp_path / "cache")
    unreadable = {key: file for key, file in damaged.items() if file.parent == tmp_path}
    with pytest.raises(ValueError, match="none of the 2 images can be read, first: the image"):
        cached(build(), unreadable, tmp_path / "cache", on_error="skip")
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_dir() and not f.name.startswith(".")]


def test_interrupted_writing_leaves_no_cache(pictures, tmp_path, monkeypatch):
    model = build()
    forward = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda pixels: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cached(model, pictures, tmp_path)
    monkeypatch.setattr(model.encoder, "forward", forward)
    assert cached(model, pictures, tmp_path).features(list(pictures)).isfinite().all()


def test_features_stay_within_their_budget(pictures, tmp_path):
    encoder = build().encoder
    row = encoder.num_tokens * encoder.width * 4
    with pytest.raises(ValueError, match="features of 4 images take .* more than data.cache_budget_gb"):
        build_feature_cache(tmp_path, encoder, pictures, "square", CPU, config={}, budget_gb=3.9 * row / 1e9)
    assert not list(tmp_path.glob("[!.]*/"))
    build_feature_cache(tmp_path, encoder, pictures, "square", CPU, config={}, budget_gb=4 * row / 1e9)


def test_features_are_cached_with_the_precision_of_online_ones(pictures, tmp_path, monkeypatch):
    """No TF32 in either, whatever the process has set."""
    model, seen = build(reconstruction=[SEMANTIC]), []
    model.encoder.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    model(collate(model, samples(pictures)))
    cached(model, pictures, tmp_path)
    assert set(seen) == {False} and torch.backends.cudnn.allow_tf32


def test_what_is_computed_ahead_uses_the_kernel_of_training(monkeypatch):
    monkeypatch.setattr("asvr.models.attention.problem_of", lambda *given: None)  # as where all work
    part = as_in_training(
        build(reconstruction=[SEMANTIC]).encoder, Config(dict(optim=dict(precision="bf16"), runtime=dict())), CPU
    )
    assert part.model.config._attn_implementation == "asvr_varlen" and not part.training
