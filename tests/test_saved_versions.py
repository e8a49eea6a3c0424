"""Model folders saved by earlier versions load, and compute what they did (docs/versions.md).

tests/data/saved holds one folder for each version whose format or components differ, as its `save_pretrained` wrote it:
a tiny LLaVA with random weights and semantic codes.
"""

import pytest
from demo_helpers import gradient
from run_helpers import ROOT

import asvr
from asvr.demo.maps import target_maps

SAVED = ROOT / "tests" / "data" / "saved"
QUESTION = "what is it?"
# What each version computed on the CPU: the loss of an answer, the first letters of its own, and how sure its head is.
COMPUTED = {"0.1.0": dict(loss=24.838897705078125, answer="' assistant", certainty=0.385215163230896)}


def test_every_folder_is_tested():
    assert {folder.name for folder in SAVED.iterdir()} == set(COMPUTED)


@pytest.mark.parametrize("version", COMPUTED)
def test_a_folder_of_an_earlier_version(version):
    expected, model = COMPUTED[version], asvr.load(SAVED / version, device="cpu")
    talk = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "a gradient"}]
    ((loss, _),) = model.score([dict(images=[gradient()], messages=talk)])
    (codes,) = target_maps(model, gradient())
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
    assert codes.probability_RCD[1:].mean() == pytest.approx(expected["certainty"], rel=1e-5)
    assert model.chat(gradient(), QUESTION, max_new_tokens=8).startswith(expected["answer"])
