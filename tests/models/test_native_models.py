"""A model whose images have grids of their own: losses by definition, and which code is which cell's."""

import pytest
import torch
from native_helpers import MOST, SIZES, noise
from vlm_helpers import PIXEL, SEMANTIC, build, code_loss, collate

from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.models.attention import set_kernel

ENCODER = dict(
    type="NaFlexEncoder",
    max_num_patches=MOST,
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
PIXELS = dict(PIXEL, resample="nearest", tokenizer=dict(PIXEL["tokenizer"], image_size=6))  # 3 x 3 codes


def native(*entries: dict):
    model = build(reconstruction=entries, encoder=ENCODER, fit=False)
    for target in model.targets:
        if target.shares_encoder:
            target.tokenizer.fit([torch.randn(64, 8)], progress=False)
    return model


def items() -> list[dict]:
    """One image each, behind a word or first in its row, then two words that carry a loss."""
    found = []
    for i, size in enumerate(SIZES):
        head = [1] if i % 2 else []
        ids = [*head, IMAGE_TOKEN, 5 + i, 6 + i]
        labels = [IGNORE] * (len(head) + 1) + ids[-2:]
        row = dict(input_ids=ids, labels=labels, images=[noise(size)], image_keys=[str(i)], sample_id=str(i))
        found.append(row)
    return found


def by_definition(model, target, item) -> tuple[torch.Tensor, int]:
    """One image alone: its features without padding, one position at a time."""
    (image,), first = item["images"], item["input_ids"].index(IMAGE_TOKEN)
    rows, columns = model.encoder.transform.grid_of(image.size)
    pixels = model.encoder.transform(image)
    features_NE = model.encoder({name: tensor[None] for name, tensor in pixels.items()})[0][: rows * columns]
    if target.shares_encoder:
        codes_ND = target.tokenizer.quantize(features_NE)
    else:
        own_MD = target.tokenizer.encode(target.tokenizer.transform(image)[None])[0]
        height, width = target.tokenizer.grid
        cells = [
            int((r + 0.5) * height / rows) * width + int((c + 0.5) * width / columns)
            for r in range(rows)
            for c in range(columns)
        ]
        codes_ND = own_MD[cells]
    words = model.llm.model.get_input_embeddings().weight
    ids = item["input_ids"]
    pieces = [words[ids[:first]], model.projector(features_NE), words[ids[first + 1 :]]]
    hidden_TH = model.llm.model.model(inputs_embeds=torch.cat(pieces)[None]).last_hidden_state[0]
    places = [(first + n - target.shift, n) for n in range(rows * columns) if first + n - target.shift >= 0]
    return sum(code_loss(target, hidden_TH[place], codes_ND[n]) for place, n in places), len(places)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("entry", [SEMANTIC, PIXELS], ids=["semantic", "pixel"])
def test_losses_are_those_of_each_image_alone(entry, shift, packed):
    model = native(dict(entry, shift=shift))
    target = model.targets[0]
    expected = [by_definition(model, target, item) for item in items()]
    set_kernel(model, "sdpa")
    batch = collate(model, items(), packed=packed)
    found = model(batch)[target.name]
    torch.testing.assert_close(found, sum(loss for loss, _ in expected), rtol=1e-5, atol=1e-4)
    assert model.count_targets([batch])[target.name] == sum(count for _, count in expected)


def test_fixed_positions_are_counted_where_an_image_has_them():
    model = native(dict(SEMANTIC, shift=0, supervise=dict(cells=[0, 9, 11])))
    batch = collate(model, items())
    sizes = [rows * columns for rows, columns in map(model.encoder.transform.grid_of, SIZES)]
    assert min(sizes) < 10 <= max(sizes)
    expected = sum(cell < size for size in sizes for cell in (0, 9, 11))
    assert model.count_targets([batch])["semantic"] == expected


def test_drawn_positions_give_the_loss_of_all_on_average():
    model, drawn = (native(dict(SEMANTIC, shift=0, **own)) for own in ({}, dict(supervise=4)))
    drawn.load_state_dict(model.state_dict())
    batch = collate(model, items())
    torch.manual_seed(0)
    with torch.no_grad():
        whole = model(batch)["semantic"] / model.count_targets([batch])["semantic"]
        sums = torch.stack([drawn(batch)["semantic"] for _ in range(100)])
    mean = sums.mean() / drawn.count_targets([batch])["semantic"]
    torch.testing.assert_close(mean, whole, rtol=0.03, atol=0)
