"""Targets that mask images, against straight-line computations, and what masks look like."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_helpers import SIGLIP
from vlm_helpers import LLAMA, build, collate, row

from asvr.models.attention import set_kernel
from asvr.models.masking import drawer
from asvr.models.targets.blocks import Blocks, block_bits
from asvr.models.transforms.apply import transform_and_train
from asvr.models.vlm import VLM

ENCODER = dict(type="HFVisionEncoder", arch=dict(SIGLIP, image_size=24))  # 6 x 6 visual tokens
LLM = dict(LLAMA, max_position_embeddings=256)
BLOCKS = dict(
    name="blocks",
    type="MaskedFeatureTarget",
    tap=1,
    masks=dict(blocks=3, min_context=4),
    mlp=dict(layers=2, width=8),
)
LATENTS = dict(
    name="latents", type="MaskedLatentTarget", mlp=dict(layers=2, width=8), outputs=6, decay=0.5, gram_weight=0.7
)
ROWS = ["bwiwwww", "bwwwww", "biwiwww", "iwww"]


def model_with(*targets: dict, visual_attention: str = "bidirectional", **changes) -> VLM:
    entries = [dict(target, **changes) for target in targets]
    model = build(reconstruction=entries, encoder=ENCODER, llm=LLM, visual_attention=visual_attention)
    set_kernel(model, "sdpa")
    return model


def rows_of(model: VLM, sketches=ROWS, **kwargs):
    return collate(model, [row(text, seed) for seed, text in enumerate(sketches)], **kwargs)


def test_a_copy_of_the_llm_follows_no_adapters():
    pytest.importorskip("peft", reason="Lora needs it: pip install -e '.[lora]'")
    model = model_with(LATENTS)
    with pytest.raises(ValueError, match=r"Lora gives the LLM other weights, and model\.reconstruction\[0\] \(Masked"):
        transform_and_train(model, [dict(type="Lora", layers=["llm.*.self_attn"])], ["heads", "llm"])


# Masks -------------------------------------------------------------------------------------------------------


def test_blocks_are_rectangles_of_one_size_and_the_context_has_none_of_them():
    blocks = Blocks(blocks=4, min_context=4)
    for seed in range(20):
        block_IKN, context_IN = blocks.draw(3, (9, 12), np.random.default_rng(seed))
        sizes = set()
        for block in block_IKN.reshape(-1, 9, 12):
            places = np.argwhere(block)
            if len(places):
                spans = places.max(0) - places.min(0) + 1
                assert len(places) == spans.prod(), "a rectangle"
                sizes.add(tuple(spans))
        assert len(sizes) == 1
        share = math.prod(sizes.pop()) / 108
        assert 0.1 < share < 0.25
        assert not (context_IN & block_IKN.any(1)).any() and (context_IN.sum(1) >= 4).all()


def test_where_blocks_leave_too_little_fewer_are_drawn():
    blocks = Blocks(blocks=4, scale=(0.5, 0.5), min_context=7)
    block_IKN, context_IN = blocks.draw(50, (4, 4), np.random.default_rng(0))
    assert (context_IN.sum(1) >= 7).all() and (block_IKN.any((1, 2))).all()
    assert (block_IKN.any(2).sum(1) < 4).any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (dict(blocks=0), r"masks.blocks=0: expected 1 to 32"),
        (dict(scale=(0.3, 0.2)), r"masks.scale=\(0.3, 0.2\): expected two numbers"),
        (dict(min_context=99), r"masks.min_context=99: expected 1 to 27"),
        (dict(size=3), r"masks.size: unknown; expected some of blocks"),
    ],
)
def test_wrong_masks_are_told(masks, message):
    with pytest.raises(ValueError, match=r"reconstruction\[0\]." + message):
        model_with(BLOCKS, masks=masks)


def test_a_blocks_tokens_see_the_context_and_their_block_alone():
    generator = np.random.default_rng(3)
    block_IKN, context_IN = Blocks(blocks=3, min_context=4).draw(1, (6, 6), generator)
    query, key = block_bits(block_IKN, context_IN)
    for q in range(36):
        for k in range(36):
            together = any(block[q] and block[k] for block in block_IKN[0])
            assert bool(query[q] & key[k]) == (bool(context_IN[0, k]) or together)
    seen_by_text = context_IN[0] | block_IKN[0].any(0)
    assert ((key != 0) == seen_by_text).all()


def test_masks_outside_of_training_are_the_same_each_time_and_in_training_drawn_by_torch():
    model = model_with(BLOCKS, LATENTS)
    batch = rows_of(model)
    for target in model.targets:
        first, second = (target.mask(batch, training=False) for _ in range(2))
        assert torch.equal(first.place_P, second.place_P)
        torch.manual_seed(5)
        drawn = target.mask(batch, training=True)
        assert not torch.equal(target.mask(batch, training=True).place_P, drawn.place_P)
        torch.manual_seed(5)
        assert torch.equal(target.mask(batch, training=True).place_P, drawn.place_P)
    assert drawer(training=False).integers(1000) == drawer(training=False).integers(1000)


# JARVIS ------------------------------------------------------------------------------------------------------


def masked_pass(model: VLM, batch, target, masked):
    """Hidden states of a pass whose masked tokens are the target's own token, with a mask made token by token."""
    embeds_BTH, features_INE = model.embed(batch)
    flat = embeds_BTH.flatten(0, 1).clone()
    flat[batch.visual_position_V[masked.masked_V]] = target.head.token
    image = torch.full((flat.shape[0],), -1)
    image[batch.visual_position_V] = torch.arange(batch.num_images).repeat_interleave(batch.num_cells)
    query, key = torch.ones_like(image), torch.ones_like(image)
    if masked.bits_V is not None:
        query[batch.visual_position_V], key[batch.visual_position_V] = masked.bits_V
    rows, width = batch.input_ids_BT.shape
    masks = torch.zeros(rows, 1, width, width, dtype=torch.bool)
    for r in range(rows):
        for q in range(width):
            for k in range(width):
                a, b = r * width + q, r * width + k
                own = image[a] == image[b] and image[a] >= 0
                masks[r, 0, q, k] = bool(query[a] & key[b]) if own else (k <= q and bool(key[b]))
    decoder = model.llm.model.get_decoder()
    out = decoder(
        inputs_embeds=flat.view_as(embeds_BTH), attention_mask=masks, use_cache=False, output_hidden_states=True
    )
    return out, features_INE


def test_the_loss_of_masked_blocks_is_the_papers():
    """The mean over images and blocks of the mean over a block's tokens, and text that reads the same pass."""
    model = model_with(BLOCKS)
    batch, (target,) = rows_of(model), model.targets
    torch.manual_seed(1)
    out = model(batch)
    torch.manual_seed(1)
    masked = target.mask(batch, training=True)
    states, features_INE = masked_pass(model, batch, target, masked)
    hidden = states.hidden_states[1].flatten(0, 1)

    block_IKN, _ = redrawn(target, batch)
    losses = []
    for i in range(batch.num_images):
        of_blocks = []
        for block in block_IKN[i]:
            cells = np.flatnonzero(block)
            places = batch.visual_position_V[i * 36 + cells]
            told, wanted = target.head.mlp(hidden[places]), features_INE[i, cells]
            of_blocks.append((1 - F.cosine_similarity(told, wanted, dim=-1)).mean())
        losses.append(torch.stack(of_blocks).mean())
    assert torch.allclose(out["blocks"], torch.stack(losses).sum(), rtol=1e-5)
    assert target.count([batch], training=True) == batch.num_images == 4
    logits = model.llm.lm_head(states.last_hidden_state.flatten(0, 1)[batch.text_source_S])
    assert torch.allclose(out["text"], F.cross_entropy(logits, batch.text_target_S, reduction="sum"), rtol=1e-5)


def redrawn(target, batch):
    """The blocks that the step drew."""
    torch.manual_seed(1)
    return target.blocks.draw(batch.num_images, target.grid, drawer(training=True))


def test_text_is_judged_on_whole_images():
    model = model_with(BLOCKS).eval()
    batch = rows_of(model)
    found = model(batch)
    plain = model_with().eval()
    assert plain.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    assert torch.equal(found["text"], plain(batch)["text"]) and found["blocks"] > 0


def test_a_share_of_the_images_is_seen_whole():
    model = model_with(BLOCKS, share=0.5)
    batch, (target,) = rows_of(model, ["bwiw"] * 40), model.targets
    torch.manual_seed(0)
    masked = target.mask(batch, training=True)
    images = set((masked.place_P // 36).tolist())
    assert 10 < len(images) < 30 and target.count([batch], training=True) == 20
    unmasked = [i for i in range(40) if i not in images]
    assert (masked.bits_V[0].view(40, 36)[unmasked] == 1).all(), "the others are seen whole, by all of their tokens"


def test_no_image_drawn_still_gives_every_weight_a_gradient():
    model = model_with(BLOCKS, share=1e-9)
    batch = rows_of(model)
    model(batch, model.count_targets([batch]))["loss"].backward()
    assert all(p.grad is not None for p in model.heads.parameters())


def test_tiles_are_refused():
    with pytest.raises(ValueError, match="needs whole images of one fixed size, but AnyRes gives others"):
        build(reconstruction=[BLOCKS], encoder=ENCODER, llm=LLM, layout=dict(type="AnyRes"))


# LaVer -------------------------------------------------------------------------------------------------------


def test_the_loss_of_masked_latents_is_the_papers():
    """Soft labels of the teacher on the whole image, and cosines of all pairs of an image's tokens."""
    model = model_with(LATENTS)
    batch, (target,) = rows_of(model), model.targets
    target.criterion.centre += 0.3 * torch.randn(6)
    for parameter in target.teacher.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    torch.manual_seed(1)
    out = model(batch)
    torch.manual_seed(1)
    masked = target.mask(batch, training=True)
    states, _ = masked_pass(model, batch, target, masked)
    told_VW = target.head.mlp(states.last_hidden_state.flatten(0, 1)[batch.visual_position_V])

    embeds_BTH, _ = model.embed(batch)
    rule = model.attention_rule(batch)
    whole = target.teacher["llm"].hidden(embeds_BTH, {-1}, rule=rule)[-1].flatten(0, 1)
    teacher_VW = target.teacher["mlp"](whole[batch.visual_position_V]).detach()

    loss = torch.zeros(())
    for place in masked.place_P.tolist():
        labels = ((teacher_VW[place] - target.criterion.centre) / 0.04).softmax(-1)
        loss = loss - (labels * (told_VW[place] / 0.1).log_softmax(-1)).sum()
    gram = torch.zeros(())
    for told_NW, wanted_NW in zip(told_VW.split(36), teacher_VW.split(36), strict=True):
        told, wanted = (F.normalize(values, dim=-1) for values in (told_NW, wanted_NW))
        gram = gram + ((told @ told.T - wanted @ wanted.T) ** 2).mean() * 14
    assert masked.place_P.numel() == 4 * 14 == target.count([batch], training=True), "0.4 of 36, rounded down"
    assert torch.allclose(out["latents"], loss + 0.7 * gram, rtol=1e-4)
    assert torch.allclose(out["gram_latents"], gram, rtol=1e-4)


def test_text_does_not_read_the_masked_pass():
    model, batch = model_with(LATENTS), None
    batch = rows_of(model)
    plain = model_with()
    assert plain.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    assert torch.equal(model(batch)["text"], plain(batch)["text"])


def test_the_teacher_and_the_mean_follow_once_a_step():
    model = model_with(LATENTS)
    (target,), batch = model.targets, rows_of(model)
    before = [p.clone() for p in target.teacher["llm"].parameters()]
    with torch.no_grad():
        for parameter in model.llm.parameters():
            parameter += 1.0
    wanted = [target.teach(seen_of(model, batch))["outputs"].mean(0)]
    model(batch), model(batch)  # two micro-batches of one step
    assert torch.equal(target.criterion.centre, torch.zeros(6))
    target.after_step(model, None)
    after = list(target.teacher["llm"].parameters())
    expected = [0.5 * old + 0.5 * new for old, new in zip(before, model.llm.parameters(), strict=True)]
    assert all(torch.allclose(own, other) for own, other in zip(after, expected, strict=True))
    assert torch.allclose(target.criterion.centre, 0.1 * wanted[0], rtol=1e-4)
    kept = target.criterion.centre.clone()
    target.after_step(model, torch.tensor(True))  # a step that was not finite moves nothing
    assert torch.equal(target.criterion.centre, kept)


def seen_of(model: VLM, batch):
    from asvr.models.targets import Seen

    embeds_BTH, features_INE = model.embed(batch)
    rule = model.attention_rule(batch)
    return Seen(
        batch=batch, hidden={}, features_INE=features_INE, training=True, embeds_BTH=embeds_BTH.detach(), rule=rule
    )


def test_the_teacher_begins_as_the_llm_that_a_run_starts_with():
    model = model_with(LATENTS)
    model.targets[0].start(model)
    pairs = zip(model.targets[0].teacher["llm"].parameters(), model.llm.parameters(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


# Both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [BLOCKS, LATENTS], ids=["blocks", "latents"])
def test_packed_and_padded_rows_give_one_loss(entry):
    model = model_with(entry)
    losses = []
    for packed in (False, True):
        torch.manual_seed(2)
        losses.append(model(rows_of(model, packed=packed)))
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert torch.allclose(value, losses[1][key], rtol=1e-4), key


@pytest.mark.parametrize("entry", [BLOCKS, LATENTS], ids=["blocks", "latents"])
def test_shift_and_supervise_are_refused(entry):
    for wrong in (dict(shift=1), dict(supervise=4)):
        with pytest.raises(ValueError, match="leave out shift and supervise"):
            model_with(entry, **wrong)


@pytest.mark.parametrize("targets", [[], [BLOCKS]], ids=["bidirectional", "masked blocks"])
def test_a_model_follows_rules_as_it_is_built(targets):
    """As one out of a folder, for which nothing chooses kernels."""
    model = build(reconstruction=targets, encoder=ENCODER, llm=LLM, visual_attention="bidirectional").eval()
    assert model(rows_of(model))["text"].isfinite()


def test_the_text_reads_whole_images_while_a_ramp_is_at_zero():
    model = model_with(BLOCKS, weight=dict(begin=0.0, end=1.0))
    batch, (target,) = rows_of(model), model.targets
    assert target.reads_alone(training=True) and not target.mask(batch, training=True).shared
    target.set_progress(0.5)
    assert not target.reads_alone(training=True) and target.mask(batch, training=True).shared


def test_two_targets_cannot_both_mask_what_the_text_reads():
    with pytest.raises(ValueError, match="only one target may mask the images that the text reads"):
        model_with(BLOCKS, dict(BLOCKS, name="others"))
