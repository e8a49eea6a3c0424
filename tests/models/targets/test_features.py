"""Targets of continuous features: each method's loss against the same numbers in plain torch, sample by sample."""

import pytest
import torch
import torch.nn.functional as F
from native_helpers import MOST, SIZES, TOWER, noise
from run_helpers import ROOT, SIGLIP
from vlm_helpers import ENCODER, LLAMA, build, collate, row, rows, step_gradients

from asvr.data.batch import IMAGE_TOKEN
from asvr.data.transforms import blank_pixels
from asvr.evaluation.predictions import inspected
from asvr.flops.count import Sample, forward_parts
from asvr.models.attention import use_attention
from asvr.models.targets import feature_truth
from asvr.models.targets.feature_truth import FeatureTruth
from asvr.models.targets.weights import has_weight
from asvr.models.vlm import VLM
from asvr.recipe.config import load_config
from asvr.recipe.preflight import wanted_weights
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config

# 3 x 3 cells beside the encoder's 2 x 2.
DINO = dict(
    type="HFVisionEncoder",
    layer=-1,
    transform=dict(center_crop=False),
    arch=dict(
        model_type="dinov2",
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
    ),
)
VIRAL = dict(
    name="viral",
    type="FeatureTarget",
    teacher=DINO,
    resample="bilinear",
    tap=1,
    mlp=dict(layers=3, width=10, activation="silu"),
    weight=0.5,
    shift=0,
)
METAMORPH = dict(name="metamorph", type="FeatureTarget", mlp=dict(layers=3, activation="gelu"), shift=1)
VDEP = dict(name="vdep", type="EmbeddingTarget", loss=dict(type="MSELoss"), shift=1)
GAS = dict(name="gas", type="EmbeddingTarget", decay=0.9, tap=1, mlp=dict(layers=2), shift=1)
TILES = dict(type="AnyRes", grids=[(1, 2)])


def states_of(model: VLM, items: list[dict]):
    """Of each image of these samples, one sample at a time: its hidden states (taps + final, N + 1, H) with the one
    before it, which is None at the beginning, its embeddings (N, H), its features (N, E) and the image itself."""
    words = model.llm.model.get_input_embeddings().weight
    for item in items:
        pieces, found, at = [], [], 0
        images = iter(item["images"])
        for token in item["input_ids"]:
            if token != IMAGE_TOKEN:
                pieces.append(words[token][None])
            else:
                image = next(images)
                features = model.encoder(model.encoder.transform(image)[None])[0]
                pieces.append(model.projector(features))
                found.append((at, image, features, pieces[-1]))
            at += len(pieces[-1])
        out = model.llm.model.model(inputs_embeds=torch.cat(pieces)[None], output_hidden_states=True)
        hidden = {-1: out.last_hidden_state[0], 1: out.hidden_states[1][0]}
        for at, image, features, embeddings in found:
            yield at, hidden, image, features, embeddings


def plain_head(head, hidden, activation):
    linear = [part for part in head.mlp if isinstance(part, torch.nn.Linear)]
    for i, part in enumerate(linear):
        hidden = part.weight @ hidden + part.bias
        hidden = hidden if i == len(linear) - 1 else activation(hidden)
    return hidden


def minus_cosine(a, b):
    return -(a @ b) / (a.norm() * b.norm())


def test_viral_is_the_negative_cosine_of_a_teachers_resampled_features():
    model = build(reconstruction=[VIRAL])
    target = model.targets[0]
    found = []
    for at, hidden, image, _, _ in states_of(model, rows()):
        maps = model.tokenizers["viral"](target.views()["viral"](image)[None]).transpose(1, 2).view(1, 12, 3, 3)
        wanted = F.interpolate(maps, (2, 2), mode="bilinear").flatten(2)[0].T
        for n in range(4):
            told = plain_head(target.head[0], hidden[1][at + n], F.silu)
            found.append(minus_cosine(told, wanted[n]))
    batch = collate(model, rows())
    out = model(batch)
    assert model.count_targets([batch])["viral"] == len(found) == 24
    torch.testing.assert_close(out["viral"] / 24, 1 + sum(found) / 24)
    torch.testing.assert_close(out["cosine_viral"] / 24, -sum(found).detach() / 24)


PLAIN = {
    "CosineLoss": lambda a, b: 1 + minus_cosine(a, b),
    "L1Loss": lambda a, b: (a - b).abs().sum() / len(a),
    "MSELoss": lambda a, b: (a - b).pow(2).sum() / len(a),
    "SmoothL1Loss": lambda a, b: sum(0.5 * d * d if d < 1 else d - 0.5 for d in (a - b).abs()) / len(a),
}


@pytest.mark.parametrize("loss", PLAIN)
def test_metamorph_tells_the_next_tokens_features(loss):
    model = build(reconstruction=[dict(METAMORPH, loss=dict(type=loss))])
    head = model.heads["metamorph"][0]
    found = []
    for at, hidden, _, features, _ in states_of(model, rows()):
        for n in range(4):
            if at + n:  # the first token of the sample "iwww" has no state before it
                told = plain_head(head, hidden[-1][at + n - 1], F.gelu)
                found.append(PLAIN[loss](told, features[n]))
    batch = collate(model, rows())
    assert model.count_targets([batch])["metamorph"] == len(found) == 23
    torch.testing.assert_close(model(batch)["metamorph"], sum(found))


def test_vdep_draws_the_state_before_a_token_to_its_embedding_without_a_gradient_into_that():
    model = build(reconstruction=[VDEP])
    found = []
    for at, hidden, _, _, embeddings in states_of(model, rows()):
        for n in range(4):
            if at + n:
                found.append((hidden[-1][at + n - 1] - embeddings[n].detach()).pow(2).sum() / 16)
    loss, parameters = sum(found), list(model.projector.parameters())
    own = model(collate(model, rows()))["vdep"]
    torch.testing.assert_close(own, loss)
    torch.testing.assert_close(torch.autograd.grad(own, parameters), torch.autograd.grad(loss, parameters))
    assert not model.heads and not model.tokenizers and not model.teachers


def test_gas_tells_the_embeddings_of_a_projector_that_follows():
    model = build(reconstruction=[GAS])
    before, own = ({k: v.clone() for k, v in m.state_dict().items()} for m in (model.teachers["gas"], model.projector))
    assert any(not torch.equal(before[key], own[key]) for key in own)  # `build` moved the projector alone
    found = []
    for at, hidden, _, features, _ in states_of(model, rows()):
        wanted = model.teachers["gas"](features)
        for n in range(4):
            if at + n:
                told = plain_head(model.heads["gas"][0], hidden[1][at + n - 1], F.gelu)
                found.append(1 + minus_cosine(told, wanted[n]))
    batch = collate(model, rows())
    torch.testing.assert_close(model(batch)["gas"], sum(found))
    step_gradients(model, [batch])  # whose optimiser changes nothing
    for key, value in model.teachers["gas"].state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[key] + 0.1 * own[key])
    assert not any(p.requires_grad for p in model.teachers.parameters()) and not model.teachers.training
    model.targets[0].start(model)
    assert all(torch.equal(v, own[k]) for k, v in model.teachers["gas"].state_dict().items())


def test_several_layers_tell_the_mean():
    two = dict(VIRAL, tap=[1, -1])
    model = build(reconstruction=[two])
    batch, target = collate(model, rows()), model.targets[0]
    assert len(model.heads["viral"]) == 2
    both, heads = model(batch), target.head
    for metric in ("viral", "cosine_viral"):
        parts = []
        for i, tap in enumerate((1, -1)):
            target.head, target.taps = heads[i : i + 1], (tap,)
            parts.append(model(batch)[metric])
        target.head, target.taps = heads, (1, -1)
        torch.testing.assert_close(both[metric], sum(parts) / 2)
    assert len(build(reconstruction=[dict(two, shared_mlp=True)]).heads["viral"]) == 1


def plain_similarity(told, wanted):
    """VIRAL's, of one image: the mean over all pairs of tokens."""
    n, found = len(told), 0.0
    for a in range(n):
        for b in range(n):
            found += (minus_cosine(told[a], told[b]) - minus_cosine(wanted[a], wanted[b])) ** 2
    return found / (n * n)


@pytest.mark.parametrize("cells", [None, [0, 3]])
def test_similarities_are_those_of_each_image(cells):
    supervise = None if cells is None else dict(cells=cells)
    entry = dict(METAMORPH, loss=dict(type="SimilarityLoss"), mlp=None, tap=1, shift=0, supervise=supervise)
    model = build(reconstruction=[entry])  # widths differ: there is no cosine
    kept = cells or list(range(4))
    found = [
        plain_similarity([hidden[1][at + n] for n in kept], [features[n] for n in kept])
        for at, hidden, _, features, _ in states_of(model, rows())
    ]
    batch = collate(model, rows())
    out, count = model(batch), model.count_targets([batch])["metamorph"]
    torch.testing.assert_close(out["metamorph"] / count, sum(found) / len(found))
    assert "cosine_metamorph" not in out and inspected(model, model.targets[0], batch) is None


@pytest.mark.parametrize("entry", [VIRAL, METAMORPH, VDEP, GAS, dict(VIRAL, loss=dict(type="SimilarityLoss"))])
def test_packed_rows_have_the_losses_of_padded_ones(entry):
    model = build(reconstruction=[entry])
    use_attention(model, "sdpa", None)
    window = [collate(model, rows()[:4], packed=True), collate(model, rows()[4:], packed=True)]
    if entry is GAS:
        model.targets[0].start(model)  # which the first step leaves where it is then
    packed, logs = step_gradients(model, window)
    padded, padded_logs = step_gradients(model, [collate(model, rows())])
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logs, padded_logs, rtol=1e-4, atol=1e-6)


def test_the_truth_is_normalised_as_a_layer_norm_does():
    model = build(reconstruction=[dict(METAMORPH, loss=dict(type="MSELoss"), normalize=True)])
    target, batch = model.targets[0], collate(model, [row("bwi", 0)])
    features = batch.pixels["encoder"]
    with torch.no_grad():
        features = model.encoder(features)[0]
        plain = (features - features.mean(1, keepdim=True)) / (
            features.var(1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        at, hidden, *_ = next(states_of(model, [row("bwi", 0)]))
        told = torch.stack([plain_head(target.head[0], hidden[-1][at + n - 1], F.gelu) for n in range(4)])
        torch.testing.assert_close(model(batch)["metamorph"], (told - plain).pow(2).mean(1).sum())


# Grids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area"])
def test_resampling_is_that_of_torch(mode):
    encoder = build(reconstruction=[]).encoder
    truth = FeatureTruth(DINO, encoder=encoder, resample=mode, key="t", load_weights=True)
    pixels = torch.randn(3, 3, 12, 12)
    maps = truth.teacher(pixels).transpose(1, 2).view(3, 12, 3, 3)
    found = truth.features(pixels, None)
    assert torch.equal(found, F.interpolate(maps, (2, 2), mode=mode).view(3, 12, 4).transpose(1, 2))
    assert truth.spec().shape == (4, 12) and found.dtype == truth.spec().dtype == torch.float32


def test_features_are_kept_in_the_teachers_precision():
    encoder = build(reconstruction=[]).encoder
    given = dict(encoder=encoder, resample="bilinear", key="t", load_weights=True)
    truth = FeatureTruth(dict(DINO, dtype="bfloat16"), **given)
    assert truth.spec().dtype == truth.features(torch.randn(1, 3, 12, 12), None).dtype == torch.bfloat16


def test_an_image_in_its_own_resolution_gets_its_own_grid():
    naflex = dict(type="NaFlexEncoder", max_num_patches=MOST, arch=dict(TOWER, model_type="siglip2_vision_model"))
    model = build(encoder=naflex, reconstruction=[VIRAL])
    items = [dict(row("bwi", i), images=[noise(size)]) for i, size in enumerate(SIZES)]
    batch, target = collate(model, items), model.targets[0]
    truth = model.truth(target, batch, None)
    assert truth["features"].shape == (len(SIZES), 9, 12) == (len(SIZES), *target.truth_spec()["features"].shape)
    found = target.features(truth, batch)
    assert len(set(batch.cells.grids)) > 3
    for i, (rows_, columns) in enumerate(batch.cells.grids):
        maps = truth["features"][i].T.view(1, 12, 3, 3)
        own = F.interpolate(maps, (rows_, columns), mode="bilinear").flatten(2)[0].T
        assert torch.equal(found[i, : rows_ * columns], own) and not found[i, rows_ * columns :].any()
    out = model(batch)
    tokens = sum(rows_ * columns for rows_, columns in batch.cells.grids)
    assert model.count_targets([batch])["viral"] == tokens
    assert out["viral"].item() == pytest.approx(tokens - out["cosine_viral"].item(), rel=1e-5)


@pytest.mark.parametrize("entry", [VIRAL, METAMORPH, VDEP, GAS, dict(VIRAL, loss=dict(type="SimilarityLoss"))])
def test_padding_of_tiles_has_no_loss(entry):
    """What stands at cells without a token changes nothing."""
    model = build(reconstruction=[entry], layout=TILES, llm=dict(LLAMA, max_position_embeddings=256))
    item = dict(row("bwi", 1), images=[noise((100, 9))])
    batch, target = collate(model, [item]), model.targets[0]
    there_IN = torch.zeros(batch.num_images * 4, dtype=torch.bool)
    there_IN[batch.cells.index_V] = True
    assert 0 < model.count_targets([batch])[target.name] == there_IN.sum() < len(there_IN)
    _, features_INE = model.embed(batch)
    truth = model.truth(target, batch, features_INE)
    batch.truth = {target.name: truth}
    whole = model(batch)[target.name]
    (name, values), *_ = truth.items()
    batch.truth = {target.name: {name: values.masked_fill(~there_IN.view(-1, 4, 1), 1e3)}}
    assert torch.equal(model(batch)[target.name], whole) and whole.isfinite()


# The rest ------------------------------------------------------------------------------------------------


def test_a_weight_of_zero_computes_nothing():
    model = build(reconstruction=[dict(VIRAL, weight=0.0)])
    model.targets[0].truth = None  # it is not asked
    gradients, logs = step_gradients(model, [collate(model, rows())])
    assert "viral" not in logs and "text" in logs
    heads = [value for key, value in gradients.items() if key.startswith("heads.")]
    assert heads and not any(value.any() for value in heads)


@pytest.mark.parametrize("name", ["viral", "metamorph", "gas"])
def test_these_methods_begin_in_finetune(name):
    stages = Recipe(load_config(ROOT / f"configs/targets/vicuna7b/{name}.py")).stages
    assert not stages["pretrain"].model.reconstruction
    assert has_weight(stages["finetune"].model.reconstruction[0].weight)


def test_a_norm_may_stand_in_front_of_the_head():
    model = build(reconstruction=[dict(METAMORPH, mlp=dict(layers=1, norm=True))])
    norm, linear = model.heads["metamorph"][0].mlp
    hidden_PH = torch.randn(3, 16)
    found = model.heads["metamorph"][0](hidden_PH)
    torch.testing.assert_close(
        found, F.layer_norm(hidden_PH, (16,), norm.weight, norm.bias) @ linear.weight.T + linear.bias
    )


def test_a_map_of_cosines():
    model = build(reconstruction=[dict(METAMORPH, tap=[1, -1])])
    batch = collate(model, [row("iww", 0), row("biwiw", 1)])
    with torch.no_grad():
        found, out = inspected(model, model.targets[0], batch)["cosine"], model(batch)
    assert found.shape == (3, 4)
    assert found.isnan().nonzero().tolist() == [[0, 0]]  # no state stands before it
    torch.testing.assert_close(found.nansum(), out["cosine_metamorph"])


def test_the_teachers_forward_pass_and_the_heads_are_counted():
    parts = dict(encoder=ENCODER, projector=dict(type="MLPProjector"), llm=dict(type="HFCausalLM", arch=LLAMA))
    with torch.device("meta"):
        model = VLM(**parts, reconstruction=[VIRAL, GAS, VDEP], vocab_size=32, load_weights=False)
    found = {part.name: part.flops for part in forward_parts(model, Sample(text_tokens=8))}
    patches, tokens, blocks = 2 * 9 * (3 * 4 * 4) * 12, 10, 2  # 9 patches and a class token
    products = 2 * tokens * (4 * 12 * 12 + 2 * 12 * 48)  # attention's four and the MLP's two
    assert found["truth viral"] == patches + blocks * (products + 2 * 2 * tokens * tokens * 12)
    assert found["head viral"] == 2 * 4 * (16 * 10 + 10 * 10 + 10 * 12)
    assert found["truth gas"] == found["truth vdep"] == found["projector"] == 2 * 4 * (8 * 16 + 16 * 16)
    assert found["head gas"] == 2 * 4 * (16 * 16 + 16 * 16) and found["head vdep"] == 0


def test_a_missing_teacher_is_among_the_missing_models(monkeypatch):
    monkeypatch.setattr("asvr.base.hub.resolve", lambda name: None)
    stage = Recipe(load_config(ROOT / "configs/targets/vicuna7b/viral.py")).stages["finetune"]
    wanted = {one.what: one.name for one in wanted_weights(stage)}
    assert wanted["model.reconstruction[0].teacher"] == "facebook/dinov2-base"


WRONG = [
    (dict(VIRAL, resample=None), r"teacher: its grid is 3x3, the encoder's 2x2: .*resample='bilinear'"),
    (dict(VIRAL, resample="nearest"), r"resample='nearest': expected one of 'bilinear'"),
    (dict(VIRAL, mlp=None), r"mlp=None: .*width 16, but .*width 12: set mlp=dict\(layers=1\)"),
    (dict(VIRAL, mlp=dict(depth=3)), r"mlp.depth: unknown; expected some of layers, width"),
    (dict(VIRAL, mlp=dict(layers=0)), r"mlp.layers=0: expected a whole number of at least 1"),
    (dict(VIRAL, mlp=dict(activation="swish")), r"mlp.activation='swish': expected one of 'gelu'"),
    (dict(VIRAL, tap=[]), r"tap=\[\]: expected a layer, or a list of different layers"),
    (dict(VIRAL, tap=[1, 1]), r"tap=\[1, 1\]: expected a layer, or a list of different"),
    (dict(VIRAL, tap=[1, 7]), r"tap=7: expected -1"),
    (dict(VIRAL, shared_mlp=True), r"shared_mlp=True: needs an `mlp`, and a list"),
    (dict(VIRAL, loss=dict(type="CodeCrossEntropy")), r"loss.type='CodeCrossEntropy' takes states_PDW, .*CosineLoss"),
    (dict(METAMORPH, loss=dict(type="SmoothL1Loss", beta=0)), r"loss.beta=0: expected a number above 0"),
    (dict(GAS, decay=1.0), r"decay=1.0: expected a number from 0 to below 1"),
]


@pytest.mark.parametrize(("entry", "words"), WRONG)
def test_a_mistake_is_told(entry, words):
    with pytest.raises(ValueError, match=words):
        build(reconstruction=[entry])


@pytest.mark.parametrize("name", ["asvr_mini", "targets/scenes/shared_vocabulary", "targets/scenes/soft_codes"])
def test_a_loss_of_features_is_refused_where_codes_are_told(name):
    config = load_config(ROOT / f"configs/{name}.py", {"model.reconstruction.0.loss": dict(type="CosineLoss")})
    with pytest.raises(ValueError, match=r"reconstruction\[0\].loss.type='CosineLoss' compares features"):
        check_config(config)


def test_teachers_that_do_not_fit_are_refused():
    native = dict(type="NaFlexEncoder", max_num_patches=MOST, arch=dict(TOWER, model_type="siglip2_vision_model"))
    with pytest.raises(ValueError, match="NaFlexEncoder reads images in their own resolution, .*give it a fixed size"):
        build(reconstruction=[dict(VIRAL, teacher=native)])
    crops = dict(DINO, transform=dict(center_crop=True))
    with pytest.raises(ValueError, match="crops images, and NaFlexEncoder reads them in their own resolution"):
        build(encoder=native, reconstruction=[dict(VIRAL, teacher=crops)])
    with pytest.raises(ValueError, match="its grid is 3x3, the encoder's each image's own"):
        build(encoder=native, reconstruction=[dict(VIRAL, resample=None)])


TEACHERS = {
    "siglip": dict(type="HFVisionEncoder", arch=dict(SIGLIP, image_size=16)),
    "resnet": dict(type="TimmEncoder", model="resnet10t", image_size=64),
    "sam": dict(type="TimmEncoder", model="samvit_base_patch16", image_size=64),
    "pair": dict(
        type="MultiEncoder",
        encoders=[DINO, dict(type="TimmEncoder", model="resnet10t", image_size=64)],
        resample="bilinear",
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_any_encoder_may_be_the_teacher(name):
    parts = dict(encoder=ENCODER, projector=dict(type="MLPProjector"), llm=dict(type="HFCausalLM", arch=LLAMA))
    entry = dict(VIRAL, teacher=TEACHERS[name])
    with torch.device("meta"):
        model = VLM(**parts, reconstruction=[entry], vocab_size=32, load_weights=False)
        target, teacher = model.targets[0], model.tokenizers["viral"]
        truth = target.truth({"viral": blank_pixels(teacher.transform, 2)}, None)
    assert truth["features"].shape == (2, 4, teacher.width) == (2, *target.truth_spec()["features"].shape)


def test_a_teacher_without_weights_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(feature_truth, "log_once", lambda level, text, *args: told.append(text % args))
    build(reconstruction=[VIRAL])
    assert told == [line for line in told if "teacher: HFVisionEncoder names no weights" in line] != []
