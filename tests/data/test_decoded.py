"""Images that are asked for again are not decoded again, and few are kept."""

import pytest
import torch
from engine_helpers import collate, item, tiny_model
from PIL import Image

from asvr.data import decoded
from asvr.data.decoded import DecodedOnce
from asvr.data.images import open_image
from asvr.data.refusals import Refusal, Refused


@pytest.fixture
def items(tmp_path) -> list[dict]:
    found = []
    for i in range(3):
        Image.new("RGB", (10, 10), (80 * i, 20, 40)).save(tmp_path / f"{i}.png")
        found.append(item(image=str(tmp_path / f"{i}.png"), sample_id=f"rows.json:{i}"))
    return found


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    found = []

    def counted(source, **kwargs):
        found.append(source.rpartition("/")[2])
        return open_image(source, **kwargs)

    monkeypatch.setattr(decoded, "open_image", counted)
    return found


def test_an_image_is_decoded_once_and_looks_the_same(items, opened):
    own = collate(tiny_model())
    remembering = DecodedOnce(own)
    for chunk in (items[:2], items[1:], items):
        assert torch.equal(remembering(chunk).pixels["encoder"], own(chunk).pixels["encoder"])
    assert opened == ["0.png", "1.png", "2.png"]


def test_the_images_that_were_used_last_are_kept(items, opened):
    remembering = DecodedOnce(collate(tiny_model()), limit=2 * 4 * 10 * 10)
    for i in (0, 1, 0, 2, 0, 1):  # the third one takes the place of the second
        remembering([items[i]])
    assert opened == ["0.png", "1.png", "2.png", "1.png"]
    opened.clear()
    none = DecodedOnce(collate(tiny_model()), limit=0)
    none([items[0]])
    none([items[0]])
    assert opened == ["0.png", "0.png"]


def test_refusals_are_those_of_the_collate_function(items, tmp_path):
    own = collate(tiny_model())
    (tmp_path / "1.png").write_bytes(b"no image")
    chunk = [*items, Refusal("rows.json:9", "malformed", "rows.json:9: not an object")]
    assert DecodedOnce(own)(chunk).refusals == own(chunk).refusals
    own.on_error = "raise"
    with pytest.raises(Refused, match="rows.json:1: the image .*1.png cannot be read"):
        DecodedOnce(own)(items)


def test_what_is_cached_is_not_opened(items, opened):
    class Cache:
        check = staticmethod(lambda keys: None)
        features = staticmethod(lambda keys: torch.zeros(len(keys), 4, 8))
        codes = staticmethod(lambda name, keys: None)

    own = collate(tiny_model())
    own.cache = Cache()
    assert DecodedOnce(own)(items).features_INE.shape == (3, 4, 8) and not opened
