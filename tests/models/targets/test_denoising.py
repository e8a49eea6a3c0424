"""A denoising head over VAE latents, against the formulas of ROSS and of DDPM."""

import math

import pytest
import torch
import torch.nn.functional as F
from method_helpers import FOLDER, TINY, records, tiny_method, tiny_vae
from parallel_helpers import launch
from run_helpers import ROOT
from torch.utils.flop_counter import FlopCounterMode
from vlm_helpers import ENCODER, LLAMA, build, collate, row, rows, step_gradients

from asvr.engine.run import run
from asvr.flops.count import Sample, forward_parts
from asvr.loading import load
from asvr.models.attention import use_attention
from asvr.models.parameter_groups import parameter_groups
from asvr.models.targets import Seen
from asvr.models.vlm import VLM
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta, wanted_weights
from asvr.recipe.recipe import Recipe

pytest.importorskip("diffusers", reason="LatentEncoder needs it: pip install -e '.[diffusion]'")

VAE = dict(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=3, scaling_factor=2.0, shift_factor=0.1)
TEACHER = dict(type="LatentEncoder", arch=VAE)
TIMES, STEPS, WIDTH, HEADS = 3, 10, 16, 2
TARGET = dict(name="latents", type="DenoisingTarget", teacher=TEACHER)
TARGET |= dict(times=TIMES, steps=STEPS, width=WIDTH, layers=2, num_heads=HEADS)


def model_with(**changes) -> VLM:
    own = {key: changes.pop(key) for key in ("encoder", "layout", "llm") if key in changes}
    return build(reconstruction=[TARGET | changes], **own)


def seen_by(model: VLM, batch, *, training: bool = True) -> tuple[Seen, dict]:
    embeds_BTH, features_INE = model.embed(batch)
    states = model.llm.hidden(embeds_BTH, {-1}, None, batch.segments)
    hidden = {tap: states_BTH.flatten(0, 1) for tap, states_BTH in states.items()}
    seen = Seen(batch=batch, hidden=hidden, features_INE=features_INE, training=training)
    return seen, model.truth(model.targets[0], batch, features_INE)


def signal_at(step: int) -> float:
    """The product of 1 - beta, betas of the cosine schedule clipped at 0.999."""
    product = 1.0
    for t in range(step + 1):
        now, then = (math.cos((i / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (t, t + 1))
        product *= 1 - min(1 - then / now, 0.999)
    return product


def plain_norm(x, eps=1e-6):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def told_noise(weights: dict, noisy_NC, step: int, hidden_NH, grid):
    """A DiT of one image, written out."""
    rates = [10000 ** (-i / 128) for i in range(128)]
    wave = torch.tensor([math.cos(step * r) for r in rates] + [math.sin(step * r) for r in rates])
    time_W = linear(weights, "time_input.2", F.silu(linear(weights, "time_input.0", wave)))
    condition = time_W + linear(weights, "hidden_input", F.silu(plain_norm(hidden_NH, 1e-5)))
    rates = [10000 ** (-i / (WIDTH // 4)) for i in range(WIDTH // 4)]
    places = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            places.append([f(place * rate) for place in (x, y) for f in (math.sin, math.cos) for rate in rates])
    x = linear(weights, "latent_input", noisy_NC) + torch.tensor(places)
    for layer in ("layers.0", "layers.1"):
        a, b, g, c, d, h = linear(weights, f"{layer}.modulation", F.silu(condition)).chunk(6, -1)
        q, k, v = linear(weights, f"{layer}.qkv", plain_norm(x) * (1 + b) + a).chunk(3, -1)
        size, mixed = WIDTH // HEADS, []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            mixed.append((q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(-1) @ v[:, part])
        x = x + g * linear(weights, f"{layer}.out", torch.cat(mixed, -1))
        up = F.gelu(linear(weights, f"{layer}.up", plain_norm(x) * (1 + d) + c), approximate="tanh")
        x = x + h * linear(weights, f"{layer}.down", up)
    a, b = linear(weights, "modulation", F.silu(condition)).chunk(2, -1)
    return linear(weights, "output", plain_norm(x) * (1 + b) + a)


@torch.no_grad()
def test_the_loss_is_the_papers():
    model = model_with()
    target, batch = model.targets[0], collate(model, rows())
    seen, _ = seen_by(model, batch)
    pixels = batch.pixels["latents"]
    vae, weights = target.teacher.model, target.head.state_dict()
    mean = (vae.encode(pixels).latent_dist.mean - 0.1) * 2.0  # (I, 3, 4, 4)
    torch.manual_seed(3)
    time_KI = torch.randint(STEPS, (TIMES, len(pixels)))
    noise_KINC = torch.randn(TIMES, len(pixels), 4, 12)
    hidden_INH = seen.hidden[-1][batch.visual_position_V].unflatten(0, (len(pixels), 4))
    expected = 0.0
    for i in range(len(pixels)):
        groups = [mean[i, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten() for r in (0, 1) for c in (0, 1)]
        for k in range(TIMES):
            signal = signal_at(time_KI[k, i])
            noisy = math.sqrt(signal) * torch.stack(groups) + math.sqrt(1 - signal) * noise_KINC[k, i]
            told = told_noise(weights, noisy, time_KI[k, i].item(), hidden_INH[i], (2, 2))
            expected += ((told - noise_KINC[k, i]) ** 2).sum().item() / 12 / TIMES
    torch.manual_seed(3)
    out = model(batch, {"text": 7.0, "latents": model.count_targets([batch])["latents"]})
    assert out["latents"].item() == pytest.approx(expected, rel=1e-5)
    assert model.count_targets([batch])["latents"] == 4 * len(pixels)


def test_the_head_begins_by_telling_nothing():
    torch.manual_seed(0)
    parts = dict(encoder=ENCODER, projector=dict(type="MLPProjector"), llm=dict(type="HFCausalLM", arch=LLAMA))
    model = VLM(**parts, reconstruction=[dict(TARGET)], vocab_size=32)
    batch = collate(model, rows())
    images = batch.num_images
    torch.manual_seed(5)
    torch.randint(STEPS, (TIMES, images))
    power = torch.randn(TIMES, images, 4, 12).square().mean((0, -1)).sum()
    torch.manual_seed(5)
    torch.testing.assert_close(model(batch)["latents"], power)
    shown = model.targets[0].inspect(*seen_by(model, batch, training=False))["error"]
    assert shown.shape == (images, 4) and 0.3 < shown.mean() < 3


@torch.no_grad()
def test_packed_rows_give_the_loss_of_padded_ones():
    model = model_with()
    use_attention(model, "sdpa", None)
    losses = []
    for packed in (False, True):
        torch.manual_seed(1)
        losses.append(model(collate(model, rows(), packed=packed))["latents"])
    torch.testing.assert_close(*losses)


@torch.no_grad()
def test_evaluation_draws_nothing_and_knows_no_batch():
    """The loss of images together is the sum of their losses alone, and the random state stays."""
    model = model_with().eval()
    items = [item for item in rows() if item["images"]]
    before = torch.get_rng_state()
    together = model(collate(model, items))["latents"]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(together, model(collate(model, items))["latents"])
    alone = sum(model(collate(model, [item]))["latents"] for item in items)
    torch.testing.assert_close(together, alone)


def test_rows_without_an_image_have_no_loss_and_leave_no_gradient_undefined():
    model = model_with()
    text = collate(model, [row("bwwww", 3, 2)])
    assert "latents" not in model(text) and model.count_targets([text])["latents"] == 0
    window = [text, collate(model, rows())]
    gradients, logs = step_gradients(model, window)
    assert all(gradient is not None for gradient in gradients.values()) and logs["latents"] > 0
    alone = {name for name, gradient in step_gradients(model, [text])[0].items() if gradient is None}
    assert alone == set()


def test_gradients_reach_head_and_llm_and_not_the_vae():
    model = model_with()
    loss = model(collate(model, rows()))["latents"]
    loss.backward()
    head = {name for name, p in model.heads.named_parameters() if p.grad is None or not p.grad.any()}
    assert head == set()
    assert all(p.grad.any() for p in model.projector.parameters())
    assert all(p.grad is None for p in model.tokenizers.parameters())


@torch.no_grad()
def test_with_a_shift_the_state_before_a_token_is_its_condition():
    model = model_with(shift=1)
    target, batch = model.targets[0], collate(model, rows())
    seen, truth = seen_by(model, batch)
    hidden_INH, there_IN = target.states(seen)
    firsts = [place // 4 for place in batch.unpreceded]  # an image that begins its sample
    assert firsts and not there_IN[firsts, 0].any() and not hidden_INH[firsts, 0].any()
    assert there_IN.sum() == model.count_targets([batch])["latents"] == 4 * batch.num_images - len(firsts)
    for token, place in enumerate(batch.visual_position_V.tolist()):
        if token not in batch.unpreceded:
            assert torch.equal(hidden_INH.flatten(0, 1)[token], seen.hidden[-1][place - 1])


@torch.no_grad()
def test_tokens_of_padding_carry_no_loss():
    model = model_with(layout=dict(type="AnyRes", grids=[(1, 2)]), llm=LLAMA | dict(max_position_embeddings=256))
    target, batch = model.targets[0], collate(model, [row("bwiww", 1, 2), row("biw", 2, 1)])
    seen, truth = seen_by(model, batch)
    assert batch.cells is not None and not seen.there_IN.all()
    torch.manual_seed(2)
    error_IN, there_IN = target.errors(seen, truth)
    torch.manual_seed(2)
    loss, _ = target.loss(seen, truth)
    assert torch.equal(there_IN, seen.there_IN)
    torch.testing.assert_close(loss, error_IN[seen.there_IN].sum())
    assert model.count_targets([batch])["latents"] == seen.there_IN.sum()
    shown = target.inspect(seen, truth)["error"]
    assert torch.equal(shown.isnan(), ~seen.there_IN)


def test_a_target_sees_the_crop_that_its_encoder_sees():
    clip = dict(model_type="clip_vision_model", hidden_size=8, intermediate_size=12, num_hidden_layers=2)
    clip |= dict(num_attention_heads=2, image_size=8, patch_size=4)
    model = model_with(encoder=dict(type="HFVisionEncoder", arch=clip))
    assert model.encoder.transform.center_crop and model.views()["latents"].center_crop
    assert not model_with().views()["latents"].center_crop


def test_flops_of_head_and_vae_are_counted():
    with torch.device("meta"):
        model = VLM(
            encoder=ENCODER,
            projector=dict(type="MLPProjector"),
            llm=dict(type="HFCausalLM", arch=LLAMA),
            reconstruction=[dict(TARGET)],
            vocab_size=32,
        )
    parts = {part.name: part.flops for part in forward_parts(model, Sample())}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.targets[0].teacher(torch.zeros(1, 3, 8, 8, device="meta"))
    assert parts["truth latents"] == counter.get_total_flops() > 0
    tokens, wide = TIMES * 4, WIDTH**2
    block = tokens * (4 + 8 + 6) * wide + TIMES * 2 * 4 * 4 * WIDTH  # attention, feed-forward, modulation; all pairs
    ends = tokens * (12 + 12 + 2 * WIDTH) * WIDTH + TIMES * (256 + WIDTH) * WIDTH + 4 * 16 * WIDTH
    assert parts["head latents"] == 2 * (2 * block + ends)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(supervise=2), r"reconstruction\[0\].supervise: DenoisingTarget predicts the noise"),
        (dict(teacher=TEACHER | dict(image_size=16)), r"\[0\].teacher: its grid is 4x4, the encoder's 2x2"),
        (dict(width=18), "width=18: expected a multiple of 4"),
        (dict(width=16, num_heads=3), "width=16: expected a multiple of 4 and of num_heads=3"),
        (dict(times=0), "times=0, steps=10"),
        (dict(times=11), "times=11, steps=10"),
    ],
)
def test_what_cannot_be_denoised_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        model_with(**changes)
    assert "\n" not in str(error.value)


def test_encoders_without_one_grid_are_refused():
    naflex = dict(model_type="siglip2_vision_model", hidden_size=8, intermediate_size=12, num_hidden_layers=2)
    naflex |= dict(num_attention_heads=2, num_patches=16, patch_size=4)
    with pytest.raises(ValueError, match="images in their own resolution"):
        model_with(encoder=dict(type="NaFlexEncoder", arch=naflex, max_num_patches=16))
    pair = dict(type="MultiEncoder", encoders=[ENCODER, ENCODER], join="sequence")
    with pytest.raises(ValueError, match="several grids"):
        model_with(encoder=pair)


def test_the_7b_recipe_has_the_released_sizes(monkeypatch):
    monkeypatch.setattr("asvr.base.hub.resolve", lambda name: None)
    stage = Recipe(load_config(ROOT / "configs/targets/vicuna7b/ross.py")).stages["pretrain"]
    model = build_meta(stage)
    target, head = model.targets[0], model.heads["latents"]
    assert sum(p.numel() for p in target.teacher.parameters()) == 83_819_683  # FLUX.1-dev's
    assert target.teacher.grid == (27, 27) and target.teacher.width == 64
    assert model.views()["latents"].size == (432, 432) and len(head.layers) == 3 and head.signal_S.shape == (1000,)
    rates = {group["lr"] for group in parameter_groups(model, stage.optim)}
    assert sorted(rates) == pytest.approx([1e-4, 1e-3])
    wanted = {(own.name, own.subfolder) for own in wanted_weights(stage)}
    assert ("black-forest-labs/FLUX.1-dev", "vae") in wanted


# Runs ----------------------------------------------------------------------------------------------------------------


FEW = {"schedule.steps": 3, "stages.pretrain.schedule.steps": 2, "evaluation": None, "optim.precision": "float32"}


def losses(work_dir) -> list[float]:
    return [line["loss_latents"] for stage in ("pretrain", "finetune") for line in records(work_dir, stage)]


def test_cached_latents_are_the_online_ones(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for cache in (True, False):
        run(tiny_method("ross", FEW | {"data.cache": cache}), tmp_path / str(cache))
    cached, online = losses(tmp_path / "True"), losses(tmp_path / "False")
    assert len(cached) == 5 and cached == pytest.approx(
        online, abs=2e-6
    )  # convolutions of other batches round otherwise
    kept = {file.name.split(".")[0] for file in (tmp_path / "True" / "cache").glob("*/*.npy")}
    assert kept == {"features", "latents"}
    own = load(tmp_path / "True", device="cpu")
    again = load(own.save_pretrained(tmp_path / "model"), device="cpu")  # which names no folder of a VAE
    pixels = torch.rand(1, 3, 16, 16)
    first, second = (found.model.targets[0].teacher for found in (own, again))
    assert second.source is None and torch.equal(first(pixels), second(pixels))


@pytest.mark.slow
def test_two_processes_train_alike_with_whole_and_sharded_weights(tmp_path):
    kinds = ("DDP", "FSDP2")
    teacher = dict(type="LatentEncoder", name=tiny_vae(), arch=None)
    options = TINY | FEW | {"schedule.steps": 1, "stages.pretrain.schedule.steps": 1}
    options |= {"model.reconstruction.0.teacher": teacher}
    runs = [
        dict(config=str(FOLDER / "ross.py"), work_dir=str(tmp_path / kind), options=options | {"parallel.type": kind})
        for kind in kinds
    ]
    launch(tmp_path, runs, 2)
    whole, sharded = (losses(tmp_path / kind) for kind in kinds)
    assert len(whole) == 2 and whole == pytest.approx(sharded, abs=1e-5) and 0.8 < whole[0] < 1.2


def test_features_of_another_teacher_go_through_a_layer_norm():
    model = model_with(teacher=dict(ENCODER), normalize=True)
    batch = collate(model, rows())
    truth = model.truth(model.targets[0], batch, None)["latents"]
    plain = model.targets[0].teacher(batch.pixels["latents"]).float()
    assert torch.allclose(truth, plain_norm(plain, 1e-5), atol=1e-5) and not torch.allclose(truth, plain)


def test_a_head_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"layers=0: expected at least 1"):
        model_with(layers=0)
