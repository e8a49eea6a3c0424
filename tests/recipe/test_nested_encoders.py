"""Encoders in an encoder are checked, looked for and tried as the model's own is."""

import pytest
import torch
from encoder_helpers import OTHER, PIXEL, SIGLIP, TOWER
from test_validate import config, problems

from asvr.base.hub import MissingWeights
from asvr.data.transforms import ImageTransform
from asvr.models.encoders import Encoder
from asvr.recipe.preflight import build_meta, check_sizes, preflight
from asvr.recipe.recipe import Recipe
from asvr.registry import ENCODERS

CODES = dict(type="CodeEncoder", tokenizer=PIXEL)
PAIR = dict(_delete_=True, type="MultiEncoder", encoders=[TOWER, CODES])


def pair(*encoders: dict, **fields) -> dict:
    return {"model.encoder": dict(PAIR, encoders=[dict(one) for one in encoders], **fields)}


@pytest.mark.parametrize(
    "change, problem",
    [
        (
            pair(TOWER, dict(TOWER, naem="a")),
            "model.encoder.encoders[1].naem: HFVisionEncoder has no such field; did you mean 'name'?",
        ),
        (pair(TOWER, dict(type="SigLIP")), "model.encoder.encoders[1].type='SigLIP': no such encoder"),
        (
            {"model.encoder": dict(PAIR, encoders=[TOWER, "dino"])},
            "model.encoder.encoders[1]='dino': expected an encoder",
        ),
        (pair(TOWER, {}), "model.encoder.encoders[1].type is missing"),
        (pair(TOWER, TOWER, jion="add"), "model.encoder.jion: MultiEncoder has no such field; did you mean 'join'?"),
        (
            pair(TOWER, dict(CODES, tokenizer=dict(PIXEL, size=3))),
            "model.encoder.encoders[1].tokenizer.size: PixelTokenizer has no such field",
        ),
        (
            pair(TOWER, dict(TOWER, arch=dict(SIGLIP, hidden=3))),
            "model.encoder.encoders[1].arch.hidden",
        ),
        (
            {"model.encoder": dict(_delete_=True, type="S2", encoder=dict(TOWER, layr=1))},
            "model.encoder.encoder.layr: HFVisionEncoder has no such field; did you mean 'layer'?",
        ),
        (
            {"model.encoder": dict(_delete_=True, type="MultiEncoder", encoders=TOWER)},
            "model.encoder.encoders={'type'",
        ),
    ],
)
def test_a_mistake_in_a_part_is_told_by_its_key(change, problem):
    (found,) = problems(config(**change))
    assert found.startswith(problem)


def test_every_missing_part_is_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    named = pair(dict(TOWER, name="no-org/tower"), dict(CODES, tokenizer=dict(PIXEL, name="no-org/codes")))
    with pytest.raises(MissingWeights) as error:
        preflight(Recipe(config(**named)))
    assert [model.name for model in error.value.models] == ["no-org/tower", "no-org/codes"]
    unknown = pair(TOWER, dict(type="S2", encoder=dict(type="HFVisionEncoder", name="no-org/other")))
    with pytest.raises(MissingWeights, match="no-org/other"):  # its sizes too stand in the folder alone
        preflight(Recipe(config(**unknown)))


@pytest.mark.parametrize(
    "change, told",
    [
        (pair(TOWER, OTHER), "the model cannot be built: .*grids are 2x2 and 3x3"),
        (
            pair(TOWER, OTHER, join="sequence") | {"model.projector.positions": True},
            r"model.projector.positions=True \(stages.pretrain\): .* several grids",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(change, told):
    with pytest.raises(ValueError, match=told) as error:
        check_sizes(Recipe(config(**change)))
    assert "\n" not in str(error.value)


def test_one_grid_of_positions_is_right():
    check_sizes(Recipe(config(**pair(TOWER, CODES), **{"model.projector.positions": True})))


def test_a_pattern_of_a_part_trains_that_part_alone():
    changes = pair(TOWER, OTHER, resample="area") | {"model.reconstruction": []}
    stage = Recipe(config(**changes, **{"stages.pretrain.train": ["encoder.encoders.1", "heads"]})).stages["pretrain"]
    encoder = build_meta(stage).encoder
    trained = [{p.requires_grad for p in part.parameters()} for part in encoder.encoders]
    assert trained == [{False}, {True}]


class OneTooFew(Encoder):
    def __init__(self, load_weights: bool = True):
        super().__init__()
        self.width, self.grid, self.transform = 4, (2, 2), ImageTransform(size=(8, 8))

    def forward(self, pixels):
        return torch.zeros(len(pixels), 3, 4)


def test_a_part_that_breaks_its_contract_is_named(monkeypatch):
    monkeypatch.setitem(ENCODERS.module_dict, "OneTooFew", OneTooFew)
    message = (
        r"model.encoder.encoders\[1\]: OneTooFew does not keep the encoder contract.*\(1, 3, 4\), expected \(1, 4, 4\)"
    )
    with pytest.raises(ValueError, match=message):
        check_sizes(Recipe(config(**pair(TOWER, dict(type="OneTooFew"), join="sequence"))))
