"""Training that begins with a model folder of other targets."""

import torch
from vlm_helpers import build

from asvr.models.component import source_of
from asvr.recipe import model_folder

LATENTS = dict(name="latents", type="MaskedLatentTarget", mlp=dict(layers=2, width=8), outputs=6, mask_ratio=0.5)


def test_targets_that_the_model_does_not_have_are_left_out(monkeypatch, tmp_path):
    there, model = build(reconstruction=[LATENTS]), build(reconstruction=[])
    with torch.no_grad():
        for parameter in there.parameters():
            parameter.add_(1.0)
    monkeypatch.setattr(model_folder, "read_description", lambda folder: {})
    monkeypatch.setattr(model_folder, "read_weights", lambda folder, description: there.state_dict())
    model_folder.start_from(model, tmp_path, cached=False)
    pairs = zip(model.llm.parameters(), there.llm.parameters(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)
    assert source_of(model.heads) is None, "empty: the next stage may have heads of its own"
