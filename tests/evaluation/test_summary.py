"""The image of a run, whatever its targets have to show."""

import json

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from asvr.base.plots import scale_by_logarithm
from asvr.evaluation import summary


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The axes' labels of what is drawn of a run with these numbers in its last line."""

    def draw(numbers: dict, examples: list[dict]) -> list[str]:
        line = dict(stage="train", step=1, steps=1, loss_text=2.0, **numbers)
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        labels = []
        monkeypatch.setattr(plt, "close", lambda figure: labels.extend(_words(figure)))
        assert summary.draw_summary(tmp_path, dict(train=dict(examples=examples))).is_file()
        return labels

    return draw


def test_ticks_of_a_logarithmic_axis_are_plain_numbers():
    figure, axis = plt.subplots()
    axis.plot([1, 2], [0.55, 0.95])
    scale_by_logarithm(axis)
    figure.canvas.draw()
    texts = [text.get_text() for text in (*axis.get_yticklabels(), *axis.get_yticklabels(minor=True))]
    plt.close(figure)
    assert {"0.6", "0.9"} <= set(texts) and not any("10" in text for text in texts)


def test_the_axis_of_own_metrics_has_a_label(tmp_path, monkeypatch):
    line = dict(stage="train", step=1, steps=1, loss_text=2.0, loss_own=1.0, cosine_own=0.5)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    labels = []
    monkeypatch.setattr(plt, "close", lambda figure: labels.extend(axis.get_ylabel() for axis in figure.axes))
    summary.draw_summary(tmp_path, {})
    assert labels[:2] == ["loss (text, codes: nats per token)", "metrics of the targets"]


def _words(figure) -> list[str]:
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_metrics_of_targets_without_codes_are_drawn(drawn):
    own = dict(loss_features=0.5, cosine_features=0.5, spread_features=[1.0, 2.0])
    assert drawn(own, []) == ["text", "features", "cosine_features"]
    assert drawn(dict(loss_semantic=1.0, acc_semantic=[0.5, 0.2], other_semantic=1.0), [])[2:] == [
        "semantic, depth 1",
        "semantic, depth 2",
    ]
    assert drawn({}, []) == ["text"]


def test_examples_without_maps_are_left_out(drawn, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    example = dict(image=str(tmp_path / "a.png"), question="what?", answer="a", expected="a", right=True)
    assert drawn({}, [dict(example, maps={})]) == ["text"]
    assert drawn({}, [dict(example, maps={}), dict(example, maps=dict(semantic=[[0.5]]))]) == ["text"]
