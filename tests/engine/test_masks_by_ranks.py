"""Two processes train targets that mask images, of which one process may have none."""

import pytest
from parallel_helpers import launch, make_config
from run_helpers import read_metrics

TARGETS = [
    dict(
        name="latents",
        type="MaskedLatentTarget",
        mlp=dict(layers=2, width=8),
        outputs=6,
        decay=0.5,
        weight=0.5,
    ),
    dict(
        name="blocks",
        type="MaskedFeatureTarget",
        tap=1,
        mlp=dict(layers=2, width=8),
        masks=dict(min_context=2),
        weight=dict(begin=0.0, end=0.8),  # without a weight it has a pass of its own
    ),
]
OPTIONS = {"model.reconstruction": TARGETS, "model.visual_attention": "bidirectional", "data.cache": False}
RUNS = dict(ddp={"parallel.type": "DDP"}, fsdp={"parallel.type": "FSDP2"}, whole={"parallel.frozen": "replicate"})
RUNS["whole"] |= RUNS["fsdp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    config = make_config(folder)
    runs = [dict(config=str(config), work_dir=str(folder / name), options=OPTIONS | own) for name, own in RUNS.items()]
    launch(folder, runs, world=2, seconds=150)
    return folder


@pytest.mark.parametrize("name", ["fsdp", "whole"])
def test_weights_in_parts_give_the_losses_of_whole_ones(name, folder):
    """Also where one process has images in a step and the other has none."""
    seen = set()
    for own, other in zip(read_metrics(folder / name), read_metrics(folder / "ddp"), strict=True):
        compared = [key for key in other if key in ("loss", "grad_norm") or key.startswith(("loss_", "kl_", "gram_"))]
        for key in compared:
            assert own[key] == pytest.approx(other[key], rel=2e-5, abs=2e-6), key
        seen |= {*compared}
    assert {"loss_latents", "loss_blocks", "gram_latents"} <= seen
