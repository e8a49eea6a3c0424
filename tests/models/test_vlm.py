import pytest
import torch
from vlm_helpers import (
    DEPTH_HEAD,
    ENCODER,
    LLAMA,
    PIXEL,
    RESNET,
    SEMANTIC,
    SIGLIP,
    build,
    collate,
    gradients_of,
    objective,
    row,
    rows,
    step_gradients,
)

from asvr.data.batch import visual_sources
from asvr.models.attention import use_attention
from asvr.models.vlm import VLM

SETS = {
    "none": [],
    "semantic": [SEMANTIC],
    "semantic, own position": [dict(SEMANTIC, shift=0)],
    "pixel": [PIXEL],
    "both": [SEMANTIC, PIXEL],
}


def assert_close(own, other, atol=1e-6):
    assert own.keys() == other.keys()
    for name in own:
        assert own[name] is not None, name
        assert torch.allclose(own[name], other[name], rtol=1e-4, atol=atol), name


# The objective ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", SETS)
def test_losses_are_those_of_the_samples_one_by_one(targets):
    model = build(reconstruction=SETS[targets])
    batch = collate(model, rows())
    with torch.no_grad():
        out, wanted = model(batch), objective(model, rows())
    names = {"text", *(entry["name"] for entry in SETS[targets])}
    assert {key for key in out if not key.startswith("correct_")} == names == set(wanted["sums"])
    assert model.count_targets([batch]) == wanted["counts"]
    for name in names:
        assert torch.allclose(out[name], wanted["sums"][name], rtol=1e-5), name


@pytest.mark.parametrize("shift", [0, 1])
def test_positions_by_hand(shift):
    """Four visual tokens an image: an image first, then two behind words."""
    model = build()
    batch = collate(model, [row("iww", 0), row("biwiw", 1)])
    width = batch.input_ids_BT.shape[1]
    assert width == 11
    source_P, token_P = visual_sources(batch, shift)
    if shift == 0:
        assert source_P.tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 17, 18, 19, 20] and token_P is None
    else:
        assert source_P.tolist() == [0, 1, 2, 11, 12, 13, 14, 16, 17, 18, 19]
        assert token_P.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert batch.num_visual_targets(shift) == len(source_P)


@pytest.mark.parametrize(("shift", "other"), [(1, 0), (0, 1)])
def test_a_loss_of_one_shift_is_not_that_of_the_other(shift, other):
    model = build(reconstruction=[dict(SEMANTIC, shift=shift)])
    model.targets[0].shift = other
    wrong = objective(model, rows())["sums"]["semantic"]
    model.targets[0].shift = shift
    with torch.no_grad():
        assert not torch.allclose(model(collate(model, rows()))["semantic"], wrong, rtol=1e-3)


@pytest.mark.parametrize("targets", ["semantic", "both"])
def test_padding_and_neighbours_change_nothing(targets):
    model = build(reconstruction=SETS[targets])
    with torch.no_grad():
        together = model(collate(model, rows()))
        apart = [model(collate(model, [item])) for item in rows()]
    for name in together:
        total = sum(out[name] for out in apart if name in out)
        assert torch.allclose(together[name], total, rtol=1e-5), name


@pytest.mark.parametrize("targets", SETS)
def test_a_packed_row_is_the_padded_rows(targets):
    model = build(reconstruction=SETS[targets])
    use_attention(model, "sdpa", None)
    window = [collate(model, rows()[:4], packed=True), collate(model, rows()[4:], packed=True)]
    assert all(b.input_ids_BT.shape == (1, b.num_tokens) and b.attention_mask_BT.all() for b in window)
    packed, packed_logs = step_gradients(model, window)
    padded, padded_logs = step_gradients(model, [collate(model, rows())])
    assert_close(packed, padded)
    assert_close(packed_logs, padded_logs)


def test_some_drawn_positions_estimate_the_whole_loss():
    """On average over draws, images that begin a row among them; all positions where all are drawn or none trained."""
    whole = build()
    batch, tokens = collate(whole, rows()), whole.encoder.num_tokens
    expected = (whole(batch)["semantic"] / whole.count_targets([batch])["semantic"]).item()
    for count in (1, 3, tokens):
        model = build(reconstruction=[dict(SEMANTIC, supervise=count)])
        total = model.count_targets([batch])["semantic"]
        assert total == whole.count_targets([batch])["semantic"] * count / tokens
        with torch.no_grad():
            torch.manual_seed(count)
            draws = torch.stack([model(batch)["semantic"] / total for _ in range(1 if count == tokens else 400)])
        error = draws.std().item() / len(draws) ** 0.5 if len(draws) > 1 else 0
        assert draws.mean().item() == pytest.approx(expected, rel=1e-5, abs=4 * error), count
        assert count == tokens or draws.std() > 0
        model.eval()
        with torch.no_grad():
            assert torch.allclose(model(batch)["semantic"], whole.eval()(batch)["semantic"]), count
            whole.train()
    with pytest.raises(ValueError, match=rf"supervise={tokens + 1}: expected None .all., 1 to {tokens}"):
        build(reconstruction=[dict(SEMANTIC, supervise=tokens + 1)])


def test_correct_counts_are_those_of_the_teacher_forced_predictions():
    model = build()
    target, batch = model.targets[0], collate(model, rows())
    with torch.no_grad():
        out = model(batch)
        embeds_BTH, features_INE = model.embed(batch)
        hidden = model.llm.hidden(embeds_BTH, {-1})[-1].flatten(0, 1)
        source_P, token_P = visual_sources(batch, 1)
        codes_PD = target.codes(model.truth(target, batch, features_INE)).flatten(0, 1)[token_P]
        right = (target.predict(hidden[source_P], codes_PD)[0] == codes_PD).sum(0)
    assert out["correct_semantic"].tolist() == right.tolist()
    assert 0 <= out["correct_text"] <= batch.num_text_targets


# Rows without text, without images -------------------------------------------------------------------------


def test_text_only_rows_encode_nothing_and_leave_zero_gradients():
    model = build(reconstruction=SETS["both"], train=("projector", "heads", "llm", "encoder"))
    model.encoder.forward = lambda pixels: pytest.fail("a text-only batch was encoded")
    batch = collate(model, [row("bwwww", 0), row("bww", 1, 1)])
    assert batch.pixels == {} and batch.num_images == 0
    assert set(model(batch)) == {"text", "correct_text"}
    gradients, logs = step_gradients(model, [batch])
    assert set(logs) == {"text", "correct_text"}
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name
        if name.startswith(("projector", "heads", "encoder")):
            assert not gradient.any(), name
    assert gradients["llm.model.lm_head.weight"].any()


def test_image_only_rows_train_through_the_visual_loss_alone():
    model = build()
    batch = collate(model, [row("bi", 0, 0), row("i", 1, 0)])
    gradients, logs = step_gradients(model, [batch])
    assert set(logs) == {"semantic", "correct_semantic"}
    for name in ("projector.mlp.0.weight", "llm.model.model.layers.0.mlp.up_proj.weight"):
        assert gradients[name].any()
    assert all(gradient.any() for name, gradient in gradients.items() if name.startswith("heads."))
    assert not gradients["llm.model.lm_head.weight"].any()
    assert torch.allclose(logs["semantic"], objective(model, [row("bi", 0, 0), row("i", 1, 0)])["sums"]["semantic"] / 7)


@pytest.mark.parametrize("train", [["projector"], ["projector", "llm"]])
@pytest.mark.parametrize("sketch", ["bi", "b"])
def test_a_micro_batch_with_nothing_to_learn_is_a_step_of_zeros(train, sketch):
    model = build(reconstruction=[], train=train)
    gradients, logs = step_gradients(model, [collate(model, [row(sketch, 0, 0)])])
    assert logs == {} and gradients
    for name, gradient in gradients.items():
        assert gradient is not None and not gradient.any(), name


@pytest.mark.parametrize("train", [["heads"], ["projector"], ["llm"], ["projector", "heads"]])
@pytest.mark.parametrize("sketch", ["bwww", "bi", "biww", "b"])
def test_any_micro_batch_gives_every_trained_parameter_a_gradient(train, sketch):
    model = build(reconstruction=SETS["both"], train=train)
    gradients, _ = step_gradients(model, [collate(model, [row(sketch, 0)])])
    assert gradients and all(gradient is not None for gradient in gradients.values())


# The training step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_step_has_the_gradient_of_text_plus_weighted_visual(weight):
    model = build(reconstruction=[dict(SEMANTIC, weight=weight), dict(PIXEL, weight=2.0)])
    written = objective(model, rows())
    mean = {name: written["sums"][name] / written["counts"][name] for name in written["sums"]}
    wanted = gradients_of(mean["text"] + weight * mean["semantic"] + 2.0 * mean["pixel"], model)
    own, logs = step_gradients(model, [collate(model, rows())])
    assert_close(own, wanted)
    assert any(gradient.abs().max() > 1e-3 for gradient in own.values())
    for name, value in mean.items():
        assert torch.allclose(logs[name], value, rtol=1e-5), name  # logs are not weighted


@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[0, 1], [2, 3], [4, 5]], [[1], [4, 0, 3], [2, 5]]])
def test_accumulation_changes_neither_gradients_nor_logs(split):
    model = build(reconstruction=SETS["both"])
    items = rows()
    whole, whole_logs = step_gradients(model, [collate(model, items)])
    parts, parts_logs = step_gradients(model, [collate(model, [items[i] for i in part]) for part in split])
    assert_close(parts, whole)
    assert whole_logs.keys() == parts_logs.keys()
    for name in whole_logs:
        assert torch.allclose(whole_logs[name], parts_logs[name], rtol=1e-5), name


def test_clipping_scales_the_whole_gradient_and_keeps_the_norm_before():
    model = build()
    free, _ = step_gradients(model, [collate(model, rows())])
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    clipped, _ = step_gradients(model, [collate(model, rows())], clip_grad=float(norm) / 4)
    assert_close(clipped, {name: g / 4 for name, g in free.items()})


def test_a_step_in_bf16_is_near_the_float32_one_and_has_the_same_codes():
    model = build()
    batch = collate(model, rows())
    exact, exact_logs = step_gradients(model, [batch])
    rounded, logs = step_gradients(model, [batch], precision="bf16")
    flat, other = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (exact, rounded))
    assert torch.cosine_similarity(flat, other, dim=0) > 0.99 and not torch.equal(flat, other)
    assert torch.allclose(logs["text"], exact_logs["text"], rtol=0.02) and logs["text"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        features = model.embed(batch)[1]
        codes = model.targets[0].codes(model.truth(model.targets[0], batch, features))
    with torch.no_grad():
        assert torch.equal(features, model.encoder(batch.pixels["encoder"]))
        assert torch.equal(codes, model.targets[0].tokenizer.encode(batch.pixels["encoder"]))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_frozen_parts_in_half_precision_train_trained_ones_in_float32(precision):
    model = build(encoder=dict(ENCODER, dtype="bfloat16"), train=["projector", "heads"])
    model.llm.model.to(torch.bfloat16)
    gradients, logs = step_gradients(model, [collate(model, rows())], precision=precision)
    assert all(gradient.dtype == torch.float32 and gradient.any() for gradient in gradients.values())
    assert logs["text"].isfinite() and logs["semantic"].isfinite()


# The parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [["projector", "heads"], ["llm"], ["encoder"]])
def test_train_only_gives_gradients_to_the_named_parts(train):
    model = build(reconstruction=SETS["both"], train=train)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(train)
    for name, part in model.components().items():
        assert all(p.requires_grad for p in part.parameters()) == (name in train) or not list(part.parameters())


@pytest.mark.parametrize("train", [["head"], ["tokenizer.semantic"], ["projector", "nothing"]])
def test_train_only_refuses_what_it_does_not_know(train):
    with pytest.raises(ValueError, match="expected some of encoder, projector, llm, heads"):
        build(train=train)


def test_unused_biases_of_the_released_head_stay_frozen():
    head = dict(DEPTH_HEAD, type="ReleasedHead")
    model = build(reconstruction=[dict(SEMANTIC, head=head)], train=["heads"])
    frozen = [name for name, p in model.heads.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2 and all("unused_bias" in name for name in frozen)
    gradients, _ = step_gradients(model, [collate(model, rows())])
    assert all(gradient.any() for gradient in gradients.values())


def test_batch_norms_of_a_frozen_encoder_do_not_move():
    model = build(encoder=RESNET, train=["projector", "heads", "llm"])
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    step_gradients(model, [collate(model, rows())])
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not any(m.training for m in model.encoder.modules()) and model.llm.training and model.projector.training
    trained = build(encoder=RESNET, train=["encoder"])
    assert all(m.training for m in trained.encoder.modules())


def test_a_trained_encoder_gets_gradients_and_a_frozen_one_none():
    for train in (["encoder", "projector"], ["projector"]):
        model = build(train=train)
        written = objective(model, rows())
        mean = sum(written["sums"][name] / written["counts"][name] for name in written["sums"])
        own, _ = step_gradients(model, [collate(model, rows())])
        wanted = gradients_of(mean, model)
        assert any(name.startswith("encoder") for name in own) == ("encoder" in train)
        used = {name: g for name, g in own.items() if g is not None}
        assert_close(used, {name: wanted[name] for name in used})
        assert all("post_layernorm" in name for name in own.keys() - used.keys())


def test_architecture_alone_on_the_meta_device():
    with torch.device("meta"):
        model = VLM(
            encoder=dict(type="HFVisionEncoder", name="no/tower", arch=SIGLIP),
            projector=dict(type="LinearProjector"),
            llm=dict(type="HFCausalLM", name="no/llm", arch=LLAMA),
            reconstruction=[SEMANTIC, PIXEL],
            vocab_size=32,
            load_weights=False,
        )
    assert all(p.is_meta for p in model.parameters())
