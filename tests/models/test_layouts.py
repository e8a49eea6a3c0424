"""A model of images that are cut into tiles: what it reads is transformers' LLaVA-NeXT, what it learns is the sum of
what it learns of each sample alone, whatever stands beside it."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from vlm_helpers import ENCODER, LLAMA, PIXEL, SEMANTIC, VOCAB, build, collate, gradients_of, row

from asvr.data.batch import visual_sources
from asvr.data.layouts import Layout
from asvr.models.attention import use_attention
from asvr.models.contracts import check_contracts
from asvr.models.targets import Seen, Target, TensorSpec
from asvr.models.vlm import VLM
from asvr.registry import TARGETS as OWN_TARGETS

GRIDS = [(1, 2), (2, 1), (2, 2), (1, 3)]
TILES = dict(type="AnyRes", grids=GRIDS)
PIXELS = dict(PIXEL, resample="nearest", shift=1)
SIZES = [(16, 16), (30, 9), (9, 30), (16, 9), (9, 16), (17, 16), (60, 8)]
CLIP = dict(
    model_type="clip_vision_model",
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=12,
    patch_size=4,
)


def image_of(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def samples() -> list[dict]:
    sketches = [("bwiwwww", 2), ("bwwwww", 3), ("biwiwww", 2), ("iwww", 1), ("bi", 0), ("bwwiw", 1)]
    items, sizes = [row(text, seed, learned) for seed, (text, learned) in enumerate(sketches)], iter(SIZES)
    return [dict(item, images=[image_of(next(sizes)) for _ in item["images"]]) for item in items]


def visual_rows(model, batch) -> torch.Tensor:
    """What stands at the visual tokens and separators, in the order of the row."""
    embeds_BTH, _ = model.embed(batch)
    positions = torch.cat([batch.visual_position_V, batch.cells.separator_position_K]).sort().values
    return embeds_BTH.flatten(0, 1)[positions]


@pytest.mark.parametrize("size", SIZES)
def test_what_the_llm_reads_of_an_image_is_that_of_transformers(size):
    model = build(encoder=dict(type="HFVisionEncoder", arch=CLIP), reconstruction=[], layout=TILES).eval()
    theirs = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**{k: v for k, v in CLIP.items() if k != "model_type"}),
            text_config=LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}, vocab_size=VOCAB),
            image_grid_pinpoints=[[12 * rows, 12 * columns] for rows, columns in GRIDS],
            vision_feature_layer=-2,
        )
    ).eval()
    tower = {key.removeprefix("vision_model."): value for key, value in model.encoder.model.state_dict().items()}
    own = theirs.model.vision_tower.state_dict()
    theirs.model.vision_tower.load_state_dict(
        own | {k: tower[k.removeprefix("vision_model.")] for k in own if k.removeprefix("vision_model.") in tower}
    )
    first, second = model.projector.mlp[0], model.projector.mlp[2]
    theirs.model.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
    theirs.model.multi_modal_projector.linear_2.load_state_dict(second.state_dict())
    theirs.model.image_newline.data.copy_(model.separators.weight[0])
    batch = collate(model, [dict(row("biww"), images=[image_of(size)])])
    with torch.no_grad():
        sizes = torch.tensor([size[::-1]])
        pixels = batch.pixels["encoder"][None]
        out = theirs.model.get_image_features(
            pixels, sizes, vision_feature_layer=-2, vision_feature_select_strategy="default"
        )
        (wanted,) = out.pooler_output
        found = visual_rows(model, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


TARGETS = {
    "shift 0": [dict(SEMANTIC, shift=0)],
    "shift 1": [SEMANTIC, PIXELS],
    "some": [dict(SEMANTIC, supervise=dict(every=3, first=0)), dict(PIXELS, supervise=dict(cells=[0, 2]))],
    "soft and shared": [
        dict(SEMANTIC, name="soft", type="SoftCodeTarget", temperature=0.5, top=3),
        dict(name="word", type="SharedVocabularyTarget", tokenizer=dict(SEMANTIC["tokenizer"], depth=1), shift=1),
    ],
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("how", [{}, dict(padding_side="left"), dict(packed=True)], ids=["padded", "left", "packed"])
def test_losses_and_gradients_are_the_sums_over_samples_alone(name, how):
    model, items = build(reconstruction=TARGETS[name], layout=TILES), samples()
    use_attention(model, "sdpa", None)
    batch, singles = collate(model, items, **how), [collate(model, [item]) for item in items]
    counts = [model.count_targets([single]) for single in singles]
    assert model.count_targets([batch]) == {key: sum(count[key] for count in counts) for key in counts[0]}

    def alone(key: str) -> torch.Tensor:
        found = (model(single) for single in singles)
        return sum(out[key] for out in found if key in out)

    for key in ("text", *(target.name for target in model.targets)):
        torch.testing.assert_close(model(batch)[key], alone(key), rtol=2e-5, atol=1e-5)
        found, own = gradients_of(model(batch)[key], model), gradients_of(alone(key), model)
        for weight, gradient in own.items():
            torch.testing.assert_close(found[weight], gradient, rtol=1e-4, atol=1e-5, msg=f"{key}: {weight}")
    assert gradients_of(model(batch)["text"], model)["separators.weight"].abs().sum() > 0


def test_targets_see_each_crop_and_which_cells_have_a_token():
    model = build(layout=TILES)
    batch = collate(model, [dict(row("bwiw"), images=[image_of((16, 9))])])
    states = torch.arange(batch.input_ids_BT.numel()).float()[:, None].expand(-1, 3)
    seen = Seen(batch=batch, hidden={-1: states}, features_INE=None, training=True)
    grid, there = seen.images(), seen.there_IN
    assert grid.shape == (batch.num_images, 4, 3) and batch.crops == [5]
    assert there[0].all() and not there.all() and (grid[~there] == 0).all()
    flat, cells = visual_sources(batch, 0)
    assert torch.equal(grid.flatten(0, 1)[cells], states[flat])
    model = build()
    batch = collate(model, [row("bwiw")])
    assert Seen(batch=batch, hidden={}, features_INE=None, training=True).there_IN is None


def test_drawn_tokens_are_as_many_as_their_share_on_average():
    model = build(reconstruction=[dict(SEMANTIC, supervise=1, shift=1)], layout=TILES)
    (target,), batch = model.targets, collate(model, samples())
    whole = set(zip(*(own.tolist() for own in visual_sources(batch, 1)), strict=True))
    counts, seen = [], set()
    for _ in range(300):
        source_P, token_P = target.positions.places(batch, 1, training=True)
        drawn = set(zip(source_P.tolist(), token_P.tolist(), strict=True))
        assert len(drawn) == len(token_P) and drawn <= whole
        counts.append(len(drawn))
        seen |= drawn
    assert seen == whole
    assert np.mean(counts) == pytest.approx(target.count([batch], training=True), rel=0.03)


class Reversed:
    """A layout of one's own: the tokens of a whole image in the opposite order, behind a separator."""

    num_separators, fixed, aspects = 1, None, ("square", "pad", "resize")

    def __init__(self, *, encoder):
        self.grid, self.num_cells, self.per_image = encoder.grid, encoder.num_tokens, self

    def __call__(self, size):
        return Layout(np.array([-1, *range(self.num_cells)[::-1]]), (self.grid,))

    def crops(self, image):
        return [image]

    def largest(self):
        return self((1, 1))

    def crops_key(self):
        return "reversed"


def test_a_layout_of_ones_own_needs_no_base_class():
    from asvr.registry import LAYOUTS

    LAYOUTS.register_module(module=Reversed, name="Reversed")
    try:
        model, plain = build(layout=dict(type="Reversed")), build()
    finally:
        LAYOUTS.module_dict.pop("Reversed")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("separators.")})
    item = row("biww")
    own, other = collate(model, [item]), collate(plain, [item])
    with torch.no_grad():
        rows_VH = visual_rows(model, own)
        wanted = plain.embed(other)[0].flatten(0, 1)[other.visual_position_V]
    assert torch.equal(rows_VH[0], model.separators.weight[0].detach()) and torch.equal(rows_VH[1:].flip(0), wanted)
    assert own.unpreceded == [] and collate(model, [row("iww")]).unpreceded == []


def test_separators_are_trained_with_the_projector():
    model = build(layout=TILES, train=("projector", "heads"))
    assert model.separators.weight.requires_grad and "separators" in model.components()
    model.train_only(["heads"])
    assert not model.separators.weight.requires_grad
    assert not build(layout=dict(TILES, newline=False)).separators.state_dict()


def test_a_head_that_needs_whole_images_is_refused():
    from asvr.models.heads import LinearHead
    from asvr.registry import HEADS

    class Mixes(LinearHead):
        def forward(self, hidden_PH, vectors_PDC):
            return super().forward(hidden_PH - hidden_PH.mean(0), vectors_PDC)

    HEADS.register_module(module=Mixes, name="Mixes")
    try:
        with pytest.raises(ValueError, match=r"model\.reconstruction\[0\]\.head: Mixes .*with AnyRes some images lack"):
            build(reconstruction=[dict(SEMANTIC, shift=0, head=dict(type="Mixes"))], layout=TILES)
    finally:
        HEADS.module_dict.pop("Mixes")


def broken_target(change: dict) -> type:
    class Mine(Target):
        def __init__(self, *, encoder, llm, **own):
            super().__init__(encoder=encoder, llm=llm, **own)
            self.head = torch.nn.Linear(llm.hidden_size, encoder.width)

        def truth_spec(self):
            return dict(features=TensorSpec((self.num_tokens, self.head.out_features), torch.float32))

        def truth(self, pixels, features_INE):
            return dict(features=features_INE.float())

        def loss(self, seen, truth):
            source_P, token_P = self.places(seen)
            wanted = truth["features"].flatten(0, 1)
            wanted = wanted if token_P is None else wanted[token_P]
            return (self.head(seen.hidden[-1][source_P].float()) - wanted).square().sum(), {}

    for name, value in change.items():
        setattr(Mine, name, value)
    return Mine


def forgets_gaps(self, seen, truth):
    source_P, _ = self.places(seen)
    return (self.head(seen.hidden[-1][source_P].float()) - truth["features"].flatten(0, 1)).square().sum(), {}


WRONG = {
    "gaps": (dict(loss=forgets_gaps), "does not run if some cells have no token.*read the truth only at token_P"),
    "inspect": (
        dict(inspect=lambda self, seen, truth: dict(a=torch.zeros(3))),
        r"'a' of inspect\(seen, truth\) has the shape \(3,\)",
    ),
    "dtype": (
        dict(truth=lambda self, pixels, features: dict(features=features.half())),
        "is torch.float16, truth_spec\\(\\) says torch.float32",
    ),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_target_is_tried_on_padding_too_before_a_run(name, monkeypatch):
    change, words = WRONG[name]
    monkeypatch.setitem(OWN_TARGETS.module_dict, "Mine", broken_target(change))
    with torch.device("meta"):
        model = VLM(
            encoder=dict(ENCODER),
            projector=dict(type="MLPProjector"),
            llm=dict(type="HFCausalLM", arch=LLAMA),
            reconstruction=[dict(name="mine", type="Mine")],
            layout=TILES,
            vocab_size=VOCAB,
            load_weights=False,
        )
    if words is None:
        check_contracts(model)
        return
    with pytest.raises(ValueError, match=words):
        check_contracts(model)
