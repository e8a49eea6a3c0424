"""Maps over the tokens of an image: what the heads predict, how sure they are, and what an answer looks at."""

import io

import numpy as np
import pytest
import torch
from demo_helpers import BOTH, LLAMA, gradient, pretrained
from PIL import Image
from vlm_helpers import PIXEL

from asvr.data.batch import visual_sources
from asvr.demo.maps import ValueMap, answer_attention, as_seen, target_maps
from asvr.evaluation.drawing import draw_targets
from asvr.evaluation.maps import alone
from asvr.evaluation.predictions import predicted_codes, right_codes
from asvr.models.attention import set_kernel
from asvr.models.targets import nearest_cells

MESSAGES = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red ball"}]
MISTRAL = dict(LLAMA, model_type="mistral", num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding_window=3)


@pytest.fixture(scope="module")
def both():
    return pretrained()


def test_probabilities_are_those_of_the_predicted_codes(both):
    model, batch = both.model, alone(both, gradient())
    for target in model.targets:
        codes = predicted_codes(model, target, batch)
        with torch.no_grad():
            embeds_BTH, _ = model.embed(batch)
            hidden = model.llm.hidden(embeds_BTH, {target.tap})[target.tap].flatten(0, 1)
            states_PDW = target.states(hidden[visual_sources(batch, target.shift)[0]], codes.true_IND[0])
            for d, classifier in enumerate(target.head.classifiers):
                all_PV = classifier(states_PDW[:, d]).softmax(-1)
                torch.testing.assert_close(codes.probability_IND[0, :, d], all_PV.max(-1).values)
                assert torch.equal(codes.predicted_IND[0, :, d], all_PV.argmax(-1))


def test_every_target_and_depth_has_a_map_of_the_grid(both):
    semantic, pixel = target_maps(both, gradient())
    assert semantic.right_RCD.shape == semantic.probability_RCD.shape == (2, 2, 3)
    assert set(np.unique(semantic.right_RCD)) <= {0.0, 1.0}
    assert (semantic.probability_RCD > 1 / 6).all() and (semantic.probability_RCD <= 1).all()  # the largest of 6
    right = right_codes(both.model, both.model.targets[0], alone(both, gradient()))
    assert np.array_equal(semantic.right_RCD, right[0].view(2, 2, 3).numpy())
    assert semantic.images is None and pixel.images is not None


def test_a_target_with_a_decoder_shows_its_codes_as_pixels(both):
    original, true, predicted = target_maps(both, gradient())[1].images
    tokenizer = both.model.targets[1].tokenizer
    assert original.size == true.size == predicted.size == (4, 4)
    pixels = tokenizer.transform(gradient(), "square")[None]
    expected = (tokenizer.decode(tokenizer.encode(pixels))[0].permute(1, 2, 0) + 1) / 2 * 255
    assert np.abs(np.asarray(true) - expected.numpy()).max() <= 0.51
    assert (
        np.abs(np.asarray(original).astype(float) - (pixels[0].permute(1, 2, 0) * 127.5 + 127.5).numpy()).max() <= 0.51
    )


def test_right_predictions_decode_to_the_picture_of_the_true_codes(both, monkeypatch):
    """Also where the tokenizer's grid is not the encoder's."""
    entry = dict(PIXEL, resample="nearest", tokenizer=dict(PIXEL["tokenizer"], image_size=8))
    for own in (both, pretrained(reconstruction=[entry])):
        target = own.model.targets[-1]
        monkeypatch.setattr(type(target), "predict", lambda self, hidden, codes: (codes, torch.ones(codes.shape)))
        _, true, predicted = target_maps(own, gradient())[-1].images
        cells = nearest_cells(own.model.encoder.grid, target.tokenizer.grid)
        if len(cells) == own.model.encoder.num_tokens:
            assert np.array_equal(true, predicted)
        else:  # 4 x 4 cells that 2 x 2 tokens stand for
            assert cells.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
            assert np.asarray(predicted).shape == (8, 8, 3)


@pytest.mark.parametrize("llm", [LLAMA, dict(LLAMA, model_type="qwen2", num_attention_heads=4, num_key_value_heads=2)])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_attention_is_that_of_a_whole_pass_and_leaves_the_kernel_as_it_was(llm, first):
    own = pretrained(llm=llm).model.llm
    embeds_BTH = torch.randn(1, 9, own.hidden_size)
    set_kernel(own, "sdpa")
    hidden_BTH = own.hidden(embeds_BTH)[-1]
    layers = own.attention(embeds_BTH, first)
    assert own.own_kernels and torch.equal(own.hidden(embeds_BTH)[-1], hidden_BTH)
    own.model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = own.model.get_decoder()(inputs_embeds=embeds_BTH, output_attentions=True).attentions
    for weights, expected in zip(layers, whole, strict=True):
        torch.testing.assert_close(weights, expected[:, :, first:], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        later = torch.arange(9)[None] > torch.arange(first, 9)[:, None]
        assert (weights[:, :, later] == 0).all()


def test_a_sliding_window_sees_its_last_positions():
    own = pretrained(llm=MISTRAL).model.llm
    for weights in own.attention(torch.randn(1, 9, own.hidden_size), 6):
        assert weights.shape == (1, 4, 3, 9)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 3))
        place = torch.arange(9)
        outside = (place[None] > place[6:, None]) | (place[None] <= place[6:, None] - 3)
        assert (weights[:, :, outside] == 0).all() and (weights[:, :, ~outside] > 0).all()


def test_an_answer_looks_at_the_picture_with_a_share_of_its_attention(both):
    weights_LRC = answer_attention(both, [gradient()], MESSAGES)
    assert weights_LRC.shape == (2, 2, 2) and (weights_LRC > 0).all()
    assert (weights_LRC.sum((1, 2)) < 1).all()
    # Written out: all rows that write the answer or its end, of a whole pass.
    batch = both.batch([dict(images=[gradient()], messages=MESSAGES)], answered=True)
    with torch.no_grad():
        layers = both.model.llm.attention(both.model.embed(batch)[0], 0)
    for own_RC, weights in zip(weights_LRC, layers, strict=True):
        expected_N = weights[0][:, batch.text_source_S].mean((0, 1))[
            batch.visual_position_V.view(-1, batch.num_cells)[0]
        ]
        np.testing.assert_allclose(own_RC, expected_N.view(2, 2).numpy(), rtol=1e-4)


def test_the_last_answer_and_the_last_picture_count(both):
    more = [{"from": "human", "value": "<image>\nand this?"}, {"from": "gpt", "value": "x"}]
    images = [gradient(), gradient(9, 9)]
    weights_LRC = answer_attention(both, images, MESSAGES + more)
    batch = both.batch([dict(images=images, messages=MESSAGES + more)], answered=True)
    with torch.no_grad():
        weights = both.model.llm.attention(both.model.embed(batch)[0], 0)[0]
    rows = batch.text_source_S[-len(both.text_tokenizer.encode(" x")) - 1 :]
    expected_N = weights[0][:, rows].mean((0, 1))[batch.visual_position_V.view(-1, batch.num_cells)[1]]
    np.testing.assert_allclose(weights_LRC[0], expected_N.view(2, 2).numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match="no image"):
        answer_attention(both, [], [{"from": "human", "value": "hm?"}, {"from": "gpt", "value": "x"}])


def test_an_llm_without_attention_weights_says_so():
    mamba = dict(model_type="mamba", hidden_size=16, num_hidden_layers=2, state_size=4, expand=2)
    own = pretrained(llm=mamba, reconstruction=[])
    with pytest.raises(ValueError, match="0 of this LLM's 2 layers have attention weights"):
        answer_attention(own, [gradient()], MESSAGES)


def test_figures_have_a_panel_for_each_map(both):
    image = gradient()
    maps, seen = target_maps(both, image), as_seen(both, image)
    assert seen.size == (448, 448)
    heads = draw_targets(seen, maps)
    titles = [axis.get_title() for axis in heads.axes]
    assert sum(title.startswith("semantic, depth") for title in titles) == 6
    assert sum(title.startswith("pixel, depth") for title in titles) == 2
    assert saved(heads).width > 500


def saved(figure) -> Image.Image:
    stream = io.BytesIO()
    figure.savefig(stream)
    return Image.open(stream)


def test_a_position_that_nothing_predicts_is_shown_as_none(monkeypatch):
    own = pretrained(reconstruction=BOTH[:1])
    monkeypatch.setattr(own.text_tokenizer, "bos_id", None)
    own.template = dict(type="plain")
    (only,) = target_maps(own, gradient())
    assert np.isnan(only.right_RCD[0, 0]).all() and not np.isnan(only.right_RCD[0, 1]).any()
    assert saved(draw_targets(as_seen(own, gradient()), [only])).width > 500


def test_each_quantity_of_ones_own_has_its_own_scale():
    values = dict(share=np.full((2, 2), 0.5), nats=np.full((2, 2), 7.0))
    figure = draw_targets(Image.new("RGB", (8, 8)), [ValueMap(name="mine", values_RC=values)])
    tops = sorted(axis.images[-1].get_clim()[1] for axis in figure.axes if len(axis.images) == 2)
    bars = sorted(axis.get_ylim()[1] for axis in figure.axes if axis.get_label() == "<colorbar>")
    assert tops == [1, 7] and bars == [1, 7]
