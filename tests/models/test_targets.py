import pytest
import torch
from vlm_helpers import PIXEL, SEMANTIC, build, collate, gradients_of, objective, rows


@pytest.mark.parametrize("tap", [0, 1, -1])
def test_a_target_reads_the_hidden_state_of_its_tap(tap):
    model = build(reconstruction=[dict(SEMANTIC, tap=tap), dict(SEMANTIC, name="last")])
    with torch.no_grad():
        out = model(collate(model, rows()))
        wanted = objective(model, rows())["sums"]
    assert torch.allclose(out["semantic"], wanted["semantic"], rtol=1e-5)
    assert torch.allclose(out["last"], wanted["last"], rtol=1e-5)


def test_a_tap_is_trained_below_it_only():
    model = build(reconstruction=[dict(SEMANTIC, tap=1)])
    gradients = gradients_of(model(collate(model, rows()))["semantic"], model)
    reached = {i: gradients[f"llm.model.model.layers.{i}.mlp.up_proj.weight"].abs().sum() > 0 for i in (0, 1)}
    assert reached == {0: True, 1: False}


def test_two_targets_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"names must differ.*semantic.*semantic"):
        build(reconstruction=[SEMANTIC, SEMANTIC])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shift=2), r"reconstruction\[0\]\.shift=2"),
        (dict(shift=None), r"shift=None"),
        (dict(tap=3), r"tap=3.*0\.\.2"),
        (dict(tap=-2), r"tap=-2"),
        (
            dict(loss=dict(type="CodeCrossEntropy", depth_weights=[1.0])),
            r"reconstruction\[0\]\.loss\.depth_weights has 1 entries, the codes have depth 3",
        ),
    ],
)
def test_an_impossible_target_is_refused_by_its_key(change, message):
    with pytest.raises(ValueError, match=message):
        build(reconstruction=[dict(SEMANTIC, **change)])


def coarse(resample):
    """A tokenizer on a grid of 3 x 3 for an encoder on 2 x 2."""
    arch = dict(SEMANTIC["tokenizer"])
    arch["encoder"] = dict(
        type="HFVisionEncoder",
        arch=dict(
            model_type="siglip_vision_model",
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
        ),
    )
    return dict(SEMANTIC, tokenizer=arch, resample=resample)


def test_grids_that_differ_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"reconstruction\[1\].*3x3.*2x2.*resample='nearest'"):
        build(reconstruction=[dict(PIXEL), coarse(None)])


def test_nearest_takes_the_cell_that_the_centre_lies_in():
    model = build(reconstruction=[coarse("nearest")])
    target, batch = model.targets[0], collate(model, rows())
    assert set(batch.pixels) == {"encoder", "semantic"} and batch.pixels["semantic"].shape[-1] == 12
    codes_IMD = target.tokenizer.encode(batch.pixels["semantic"])
    # Centres at 1/4 and 3/4 of a side lie in the first and the last of three cells.
    corners_IND = codes_IMD.unflatten(1, (3, 3))[:, [0, 2]][:, :, [0, 2]].flatten(1, 2)
    assert torch.equal(target.codes(model.truth(target, batch, None)), corners_IND)
    assert not list(target.tokenizer.encoder.parameters())[0].requires_grad
    with torch.no_grad():
        assert model(batch)["semantic"].isfinite()
