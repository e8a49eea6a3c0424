"""Two processes train soft codes and codes in the LLM's vocabulary as one does."""

import pytest
import torch
from engine_helpers import without_bias_of_keys
from parallel_helpers import held, launch, make_config, train
from run_helpers import read_metrics

FIT = dict(vectors_per_code=8, iterations=2)
TARGETS = [
    dict(
        name="soft",
        type="SoftCodeTarget",
        temperature=0.5,
        top=3,
        tokenizer=dict(type="SemanticTokenizer", quantizer="product", depth=2, codebook_size=4),
        fit=FIT,
        head=dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2),
        weight=0.5,
        shift=1,
    ),
    dict(
        name="word",
        type="SharedVocabularyTarget",
        tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=4),
        fit=FIT,
        weight=0.5,
        shift=1,
    ),
]
OPTIONS = {"model.reconstruction": TARGETS, "evaluation": None}
RUNS = dict(ddp={"parallel.type": "DDP"}, fsdp={"parallel.type": "FSDP2"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both ways of sharing, and one process."""
    folder = tmp_path_factory.mktemp("ranks")
    config = make_config(folder)
    runs = [dict(config=str(config), work_dir=str(folder / name), options=OPTIONS | own) for name, own in RUNS.items()]
    launch(folder, runs, world=2)
    train(config, folder / "one", OPTIONS)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_losses_and_weights_of_one(name, folder):
    seen = set()
    for own, other in zip(read_metrics(folder / name), read_metrics(folder / "one"), strict=True):
        compared = [key for key in other if key in ("loss", "grad_norm") or key.startswith(("loss_", "entropy_"))]
        for key in compared:  # a step without images has no visual loss
            assert own[key] == pytest.approx(other[key], rel=2e-5, abs=2e-6), key
        seen |= {*compared}
    assert {"loss_soft", "loss_word", "entropy_soft"} <= seen
    if name == "ddp":  # the other's are in parts, whose losses tell
        found, wanted = (held(folder / which, "finetune") for which in (name, "one"))
        assert any(key.startswith("heads.word.") for key in wanted) and found.keys() == wanted.keys()
        for key, value in wanted.items():
            own, other = without_bias_of_keys(key, found[key]), without_bias_of_keys(key, value)
            torch.testing.assert_close(own, other, rtol=0, atol=2e-6, msg=key)
