import pytest
import torch
from data_helpers import FixedTokens
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asvr.data import collate as module
from asvr.data.batch import IGNORE, IMAGE_TOKEN, visual_sources
from asvr.data.collate import Collate
from asvr.data.refusals import Refusal, Refused
from asvr.data.transforms import ImageTransform

SMALL, LARGE = ImageTransform(size=(4, 4)), ImageTransform(size=(6, 6))
PAD = 3


def item(input_ids, labels=None, name="x"):
    images = [Image.new("RGB", (5, 3), (i * 40, 0, 0)) for i in range(input_ids.count(IMAGE_TOKEN))]
    keys = [f"{name}{i}" for i in range(len(images))]
    labels = labels or [IGNORE] * len(input_ids)
    return dict(input_ids=input_ids, labels=labels, images=images, image_keys=keys, sample_id=name)


def make(n=2, views=None, **kwargs):
    return Collate(layout=FixedTokens(n), views=dict(encoder=SMALL) if views is None else views, pad_id=PAD, **kwargs)


def test_a_batch_by_hand():
    rows = [
        item([1, IMAGE_TOKEN, 5, 6], [IGNORE, IGNORE, 5, 6]),
        item([IMAGE_TOKEN, 7], [IGNORE, 7]),
        item([1, 8], [IGNORE, 8]),
    ]
    batch = make()(rows)
    v = IMAGE_TOKEN
    assert batch.input_ids_BT.tolist() == [[1, v, v, 5, 6], [v, v, 7, PAD, PAD], [1, 8, PAD, PAD, PAD]]
    assert batch.attention_mask_BT.tolist() == [[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
    assert batch.text_source_S.tolist() == [2, 3, 6, 10] and batch.text_target_S.tolist() == [5, 6, 7, 8]
    assert batch.visual_position_V.tolist() == [1, 2, 5, 6] and batch.num_cells == 2 and batch.crops == [1, 1]
    assert batch.unpreceded == [2] and batch.num_tokens == 10
    assert batch.preceded_V.tolist() == [0, 1, 3]  # of two images with two tokens: not the first of the second
    assert visual_sources(batch, 1)[0].tolist() == [0, 1, 5]
    assert batch.pixels["encoder"].shape == (2, 3, 4, 4)


TOKEN = st.one_of(st.just((IMAGE_TOKEN, IGNORE)), st.tuples(st.integers(4, 99), st.booleans()))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(TOKEN, min_size=1, max_size=6), min_size=1, max_size=4), n=st.integers(1, 4))
def test_indices_agree_with_the_rows(rows, n):
    items = [
        item([t for t, _ in row], [t if learned is True else IGNORE for t, learned in row], name=str(b))
        for b, row in enumerate(rows)
    ]
    batch = make(n, views={})(items)
    flat = batch.input_ids_BT.flatten()
    assert (flat[batch.visual_position_V] == IMAGE_TOKEN).all()
    assert len(batch.visual_position_V) == (flat == IMAGE_TOKEN).sum()
    assert batch.num_images == sum(t == IMAGE_TOKEN for row in rows for t, _ in row) and batch.num_cells == n
    # A target's own place is one behind its source, in the same row.
    assert torch.equal(flat[batch.text_source_S + 1], batch.text_target_S)
    width = batch.input_ids_BT.shape[1]
    assert ((batch.text_source_S + 1) % width != 0).all()
    assert batch.num_text_targets == sum(learned is True for row in rows for _, learned in row[1:])
    assert batch.attention_mask_BT.sum() == batch.num_tokens
    assert (batch.input_ids_BT[~batch.attention_mask_BT] == PAD).all()


def test_a_text_only_batch_has_no_pixels():
    batch = make(3)([item([1, 2, 3], [IGNORE, 2, 3])])
    assert len(batch.visual_position_V) == batch.num_images == 0 and batch.pixels == {} and batch.unpreceded == []


def test_equal_transforms_share_a_tensor_and_each_picture_is_opened_once(monkeypatch):
    opened = []
    monkeypatch.setattr(module, "open_image", lambda source, **_: opened.append(source) or source)
    views = dict(encoder=SMALL, semantic=ImageTransform(size=(4, 4)), pixel=LARGE)
    batch = make(views=views)([item([1, IMAGE_TOKEN, IMAGE_TOKEN])])
    assert batch.pixels["encoder"] is batch.pixels["semantic"]
    assert batch.pixels["pixel"].shape == (2, 3, 6, 6) and len(opened) == 2


class Cache:
    def __init__(self, features=True, codes=()):
        self.give, self.targets = features, codes

    def check(self, keys):
        if "unreadable" in keys:
            raise Refused("the image cannot be read", "unreadable image")

    def features(self, keys):
        return torch.tensor([[[float(key[-1])]] for key in keys]) if self.give else None

    def truth(self, target, keys):
        return dict(codes=torch.zeros(len(keys), 2, 1, dtype=torch.int64)) if target in self.targets else None


def test_cached_views_have_no_pixels_and_open_no_picture(monkeypatch):
    views = dict(encoder=SMALL, semantic=SMALL, pixel=LARGE)
    batch = make(views=views, targets=["semantic"], cache=Cache(codes=["semantic"]))(
        [item([1, IMAGE_TOKEN, IMAGE_TOKEN])]
    )
    assert list(batch.pixels) == ["pixel"] and batch.features_INE.flatten().tolist() == [0, 1]
    assert batch.truth["semantic"]["codes"].shape == (2, 2, 1)
    monkeypatch.setattr(module, "open_image", None)
    batch = make(views=dict(encoder=SMALL), cache=Cache())([item([1, IMAGE_TOKEN])])
    assert batch.pixels == {}
    assert make(cache=Cache())([item([1, 2], [IGNORE, 2])]).features_INE is None


def test_an_unreadable_picture_takes_its_sample_with_it(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    broken = item([1, IMAGE_TOKEN], name="broken") | dict(images=[tmp_path / "x.png"])
    rows = [item([1, IMAGE_TOKEN, 5], name="a"), broken, item([1, IMAGE_TOKEN], name="b")]
    views = dict(encoder=SMALL, pixel=LARGE)
    batch = make(views=views, on_error="skip", cache=Cache(False))(rows)
    assert batch.sample_ids == ["a", "b"] and batch.num_images == len(batch.pixels["encoder"]) == 2
    assert [r.sample_id for r in batch.refusals] == ["broken"] and "x.png" in batch.refusals[0].message
    with pytest.raises(Refused, match="broken: the image .*x.png cannot be read"):
        make(views=views)(rows)


def test_cached_features_belong_to_the_samples_that_are_left(tmp_path):
    broken = item([1, IMAGE_TOKEN], name="broken") | dict(images=[tmp_path / "none.png"], image_keys=["k7"])
    rows = [broken, item([1, IMAGE_TOKEN], name="a")]
    batch = make(views=dict(encoder=SMALL, pixel=LARGE), on_error="skip", cache=Cache())(rows)
    assert batch.features_INE.flatten().tolist() == [0] and batch.pixels["pixel"].shape[0] == 1


def test_what_the_cache_could_not_read_takes_its_sample_with_it():
    rows = [item([1, IMAGE_TOKEN], name="broken") | dict(image_keys=["unreadable"]), item([1, IMAGE_TOKEN], name="a")]
    batch = make(on_error="skip", cache=Cache())(rows)
    assert batch.sample_ids == ["a"] and batch.features_INE.flatten().tolist() == [0]
    assert [(r.sample_id, r.reason) for r in batch.refusals] == [("broken", "unreadable image")]
    with pytest.raises(Refused, match="broken: the image cannot be read"):
        make(cache=Cache())(rows)


def test_a_batch_of_refusals_still_runs_and_teaches_nothing():
    refusal = Refusal("f:1", "missing image", "f, record 1: ...")
    batch = make(n=4)([refusal, refusal])
    assert batch.refusals == [refusal, refusal] and batch.sample_ids == []
    assert batch.input_ids_BT.tolist() == [[PAD]] and batch.attention_mask_BT.all()
    assert batch.num_text_targets == batch.num_images == batch.num_visual_targets(1) == 0


def test_a_row_beyond_the_limit_is_our_own_mistake():
    with pytest.raises(AssertionError, match="6 positions, the limit is 5"):
        make(n=4, max_length=5)([item([1, IMAGE_TOKEN, 2])])


def test_options_are_checked():
    with pytest.raises(ValueError, match="image_aspect='wide'"):
        make(image_aspect="wide")
    with pytest.raises(ValueError, match="on_error='no'"):
        make(on_error="no")
