"""Soft codes: the loss written out token by token, where positions and grids differ, and from a cache."""

import pytest
import torch
from vlm_helpers import PIXEL, SEMANTIC, build, collate, objective, row, rows, step_gradients

from asvr.data.batch import visual_sources
from asvr.models.attention import use_attention
from asvr.models.losses import CodeCrossEntropy
from asvr.registry import LOSSES

SOFT = dict(SEMANTIC, type="SoftCodeTarget", temperature=0.4, top=3)
NATIVE = dict(
    type="NaFlexEncoder",
    max_num_patches=12,
    arch=dict(
        model_type="siglip2_vision_model",
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=16,
        patch_size=4,
    ),
)


def straight(model, target, batch, vectors, codebooks, cell_P):
    """Sum over positions, mean over depths of -sum_k q_k log p_k.

    vectors: what is quantised, of each cell of the tokenizer in all images (cells, C). codebooks: of each depth.
    cell_P: for each supervised position the cell whose codes it predicts.
    """
    temperature, top = target.options["temperature"], target.options["top"]
    embeds_BTH, _ = model.embed(batch)
    hidden = model.llm.hidden(embeds_BTH)[-1].flatten(0, 1)
    source_P, _ = visual_sources(batch, target.shift)
    total, entropy, right = 0.0, torch.zeros(len(codebooks)), torch.zeros(len(codebooks))
    for source, cell in zip(source_P.tolist(), cell_P, strict=True):
        left, chosen, shares = vectors[cell].double(), [], []
        for book in codebooks:
            q_V = torch.softmax(-(left - book.double()).square().sum(-1) / temperature, -1)
            smallest = q_V.sort(descending=True).values[top - 1]
            q_V = torch.where(q_V >= smallest, q_V, 0)
            shares.append(q_V / q_V.sum())
            chosen.append(q_V.argmax())
            left = left - book[chosen[-1]].double()
        vectors_DC = torch.stack([book[code] for book, code in zip(codebooks, chosen, strict=True)])
        states_DW = target.head(hidden[source][None], vectors_DC[None])[0]
        for d, (state, q_V) in enumerate(zip(states_DW, shares, strict=True)):
            logits_V = target.head.classifiers[d](state).double()
            total = total - (q_V * (logits_V - logits_V.logsumexp(0))).sum() / len(codebooks)
            entropy[d] -= torch.special.xlogy(q_V, q_V).sum().float()
            right[d] += logits_V.argmax() == chosen[d]
    return total, entropy, right


def features_of(model, batch):
    with torch.no_grad():
        return model.encoder(batch.pixels["encoder"])


def books(target):
    return [book.weight for book in target.tokenizer.quantizer.codebooks]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("top", [1, 3, 6])
def test_the_loss_is_the_papers_formula(shift, top):
    model = build(reconstruction=[dict(SOFT, shift=shift, top=top)])
    target, batch = model.targets[0], collate(model, rows())
    _, token_P = visual_sources(batch, shift)
    cells = range(batch.num_images * 4) if token_P is None else token_P.tolist()
    with torch.no_grad():
        out = model(batch)
        wanted, entropy, right = straight(
            model, target, batch, features_of(model, batch).flatten(0, 1), books(target), cells
        )
    assert out["semantic"].item() == pytest.approx(wanted.item(), rel=1e-3)  # shares are float16
    torch.testing.assert_close(out["entropy_semantic"], entropy, rtol=5e-3, atol=5e-3)
    assert torch.equal(out["correct_semantic"], right)
    if top > 1:
        assert (entropy > 0.1).all()


@pytest.mark.parametrize("change", [dict(top=1), dict(temperature=1e-9)])
def test_without_softness_it_is_the_loss_of_hard_codes(change):
    model = build(reconstruction=[dict(SOFT, **change)])
    with torch.no_grad():
        out, wanted = model(collate(model, rows())), objective(model, rows())
    assert torch.allclose(out["semantic"], wanted["sums"]["semantic"], rtol=1e-5)
    assert not out["entropy_semantic"].any()


def test_product_codes_are_softened_by_their_group():
    tokenizer = dict(SEMANTIC["tokenizer"], quantizer="product", depth=2)
    model = build(reconstruction=[dict(SOFT, shift=0, tokenizer=tokenizer)])
    target, batch = model.targets[0], collate(model, rows())
    padded = [torch.nn.functional.pad(weight, (4 * d, 4 - 4 * d)) for d, weight in enumerate(books(target))]
    with torch.no_grad():
        wanted, _, _ = straight(model, target, batch, features_of(model, batch).flatten(0, 1), padded, range(24))
        assert model(batch)["semantic"].item() == pytest.approx(wanted.item(), rel=1e-3)


def test_each_position_takes_the_shares_of_its_nearest_cell():
    tokenizer = dict(PIXEL["tokenizer"], image_size=6)  # 3 x 3 codes for 2 x 2 tokens
    entry = dict(SOFT, name="pixel", tokenizer=tokenizer, head=PIXEL["head"], shift=0, resample="nearest")
    model = build(reconstruction=[entry])
    target, batch = model.targets[0], collate(model, rows())
    with torch.no_grad():
        vectors = target.tokenizer.latents(batch.pixels["pixel"]).flatten(0, 1)
        cells = [9 * image + cell for image in range(batch.num_images) for cell in (0, 2, 6, 8)]
        wanted, _, _ = straight(model, target, batch, vectors, [target.tokenizer.codebook()], cells)
        assert model(batch)["pixel"].item() == pytest.approx(wanted.item(), rel=1e-3)


def test_where_images_have_grids_of_their_own():
    tokenizer = dict(PIXEL["tokenizer"], image_size=6)
    entry = dict(SOFT, name="pixel", tokenizer=tokenizer, head=PIXEL["head"], shift=0, resample="nearest")
    model = build(reconstruction=[entry], encoder=NATIVE)
    target, batch = model.targets[0], collate(model, [row("biw", 0), row("biw", 3)])
    with torch.no_grad():
        vectors = target.tokenizer.latents(batch.pixels["pixel"]).flatten(0, 1)
        cells = [
            9 * i + 3 * int(3 * (r + 0.5) / height) + int(3 * (c + 0.5) / width)
            for i, (height, width) in enumerate(batch.cells.grids)
            for r in range(height)
            for c in range(width)
        ]
        wanted, _, _ = straight(model, target, batch, vectors, [target.tokenizer.codebook()], cells)
        assert model(batch)["pixel"].item() == pytest.approx(wanted.item(), rel=1e-3)


def test_what_a_cache_keeps_gives_the_same_loss():
    model = build(reconstruction=[SOFT])
    target, batch = model.targets[0], collate(model, rows())
    online = model(batch)
    kept = target.to_cache(target.truth({}, features_of(model, batch)))
    assert {name: (value.dtype, value.shape[1:]) for name, value in kept.items()} == {
        name: (spec.dtype, torch.Size(spec.shape)) for name, spec in target.truth_spec().items()
    }
    assert kept["ids"].dtype == torch.int16 and kept["shares"].dtype == torch.float16
    batch.truth["semantic"] = kept
    cached = model(batch)
    assert all(torch.equal(cached[name], online[name]) for name in online)


def test_a_packed_row_is_the_padded_rows():
    model = build(reconstruction=[SOFT])
    use_attention(model, "sdpa", None)
    window = [collate(model, rows()[:4], packed=True), collate(model, rows()[4:], packed=True)]
    packed, packed_logs = step_gradients(model, window)
    padded, padded_logs = step_gradients(model, [collate(model, rows())])
    for found, wanted in ((packed, padded), (packed_logs, padded_logs)):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


class Hard(CodeCrossEntropy):
    def forward(self, states_PDW, classifiers, codes_PD):
        return super().forward(states_PDW, classifiers, codes_PD)


def test_what_cannot_be_is_refused():
    LOSSES.register_module(module=Hard, force=True)
    for change, message in (
        (dict(temperature=0), r"reconstruction\[0\]\.temperature=0: expected a number above 0"),
        (dict(top=7), r"reconstruction\[0\]\.top=7: expected 1 to 6"),
        (dict(loss=dict(type="Hard")), r"reconstruction\[0\]\.loss: Hard\.forward\(\) takes no `soft`"),
    ):
        with pytest.raises(ValueError, match=message):
            build(reconstruction=[dict(SOFT, **change)])
