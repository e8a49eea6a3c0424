"""What a target may not do, or would do wrongly without a word."""

import copy

import pytest
import torch
from engine_helpers import LLAMA, collate, item, tiny_model
from PIL import Image
from run_helpers import SIGLIP
from target_helpers import Features
from torch import nn

from asvr.caches.features import build_feature_cache
from asvr.models.contracts import check_contracts
from asvr.models.targets import CodeTarget, Target, TensorSpec, move_towards
from asvr.models.targets.positions import Positions
from asvr.models.vlm import VLM
from asvr.registry import TARGETS

CPU = torch.device("cpu")
PICTURES = [Image.new("RGB", (8, 8), (40 * i, 200, 255 - 40 * i)) for i in range(3)]


class Moving(Features):
    def __init__(self, **own):
        super().__init__(**own)
        self.teacher = nn.Linear(2, 2)

    def after_step(self, model, skipped):
        pass


class Masked(CodeTarget):
    def truth_spec(self):
        return super().truth_spec() | dict(mask=TensorSpec((self.num_tokens,), torch.float32))

    def truth(self, pixels, features_INE):
        return super().truth(pixels, features_INE) | dict(mask=torch.full((len(features_INE), self.num_tokens), 0.5))


@pytest.fixture
def model_with(monkeypatch):
    def build(kind: type[Target], **entry):
        monkeypatch.setitem(TARGETS.module_dict, kind.__name__, kind)
        return tiny_model(reconstruction=[dict(name="own", type=kind.__name__, **entry)])

    return build


def batch_of(model, images: int = 2):
    return collate(model)([item(image=image, sample_id=f"{i}") for i, image in enumerate(PICTURES[:images])])


def test_a_truth_carries_no_gradients_into_a_trained_encoder(model_with):
    model = model_with(Features)
    model.train_only(["encoder", "heads"])
    _, features_INE = model.embed(batch_of(model))
    assert features_INE.requires_grad
    assert not model.truth(model.targets[0], batch_of(model), features_INE)["features"].requires_grad


def test_a_teacher_that_moves_must_be_kept(model_with):
    with pytest.raises(ValueError, match=r"reconstruction\[0\]: Moving has a teacher .*keeps_teacher = True"):
        model_with(Moving)


def test_what_the_cache_is_not_given_is_refused(model_with, tmp_path):
    tokenizer = dict(type="SemanticTokenizer", depth=2, codebook_size=8)
    model = model_with(Masked, tokenizer=tokenizer, head=dict(type="LinearHead"), shift=0)
    pictures = {str(i): image for i, image in enumerate(PICTURES)}
    cache = build_feature_cache(tmp_path, model.encoder, pictures, "square", CPU, config={})
    with pytest.raises(ValueError, match=r"'own': to_cache\(\) gives \['codes'\], truth_spec\(\) names .*'mask'"):
        cache.add_truth(model.targets[0], images=pictures, aspect="square", device=CPU, config={})


def test_the_disk_must_have_room_for_a_truth(model_with, tmp_path):
    class Large(Features):
        def truth_spec(self):
            return dict(features=TensorSpec((1000, 1000), torch.float32))

    model = model_with(Large)
    pictures = {"0": PICTURES[0]}
    cache = build_feature_cache(tmp_path, model.encoder, pictures, "square", CPU, config={})
    with pytest.raises(ValueError, match="the truth of target 'own'.*cache_budget_gb"):
        cache.add_truth(model.targets[0], images=pictures, aspect="square", device=CPU, config={}, budget_gb=0.001)


def test_an_image_that_begins_its_sample_has_no_first_token_to_learn_from(model_with):
    model = model_with(Features, supervise=dict(cells=[0]), shift=1)
    batch = batch_of(model)
    batch.unpreceded = [i * batch.num_cells for i in range(batch.num_images)]
    assert not model.targets[0].learns_from(batch) and model.count_targets([batch])["own"] == 0
    assert "own" not in model(batch, model.count_targets([batch]) | {"own": 1.0})


def test_statistics_of_a_loss_move_without_a_head(model_with):
    class Headless(Features):
        def __init__(self, **own):
            super().__init__(**own)
            self.head, self.criterion = None, nn.BatchNorm1d(4, affine=False)

    model = model_with(Headless)
    model.train_only(["llm"])
    assert model.train().losses["own"].training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_in_half_precision_is_refused(dtype):
    student = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="small updates are lost: use teacher.float"):
        move_towards(copy.deepcopy(student).to(dtype), student, decay=0.999)


def test_an_average_of_half_precision_weights_moves():
    student = nn.Linear(4, 4).to(torch.bfloat16)
    teacher = copy.deepcopy(student).float()
    begin = teacher.weight.clone()
    with torch.no_grad():
        student.weight.mul_(1.5)
    for _ in range(1000):
        move_towards(teacher, student, decay=0.999, skipped=torch.tensor(False))
    torch.testing.assert_close(
        teacher.weight / begin, torch.full((4, 4), 1 + 0.5 * (1 - 0.999**1000)), rtol=1e-2, atol=0
    )
    before = teacher.weight.clone()
    move_towards(teacher, student, decay=0.0, skipped=torch.tensor(True))
    assert torch.equal(teacher.weight, before)


@pytest.mark.parametrize(
    "supervise",
    [0, 5, True, "all", dict(every=0), dict(first=1), dict(cells=[]), dict(cells=[4]), dict(cells=[1, 1]), {}],
)
def test_positions_that_are_none_are_refused(supervise):
    with pytest.raises(ValueError, match="x.supervise="):
        Positions(supervise, 4, key="x.supervise")


def test_every_second_token_has_the_losses_of_these_tokens(model_with):
    model = model_with(Features, shift=0)
    every, cells = (Positions(s, 4, key="") for s in (dict(every=2, first=1), dict(cells=[1, 3])))
    batch = batch_of(model)
    whole = model(batch)["own"]
    found = []
    for positions in (every, cells, Positions(dict(cells=[0, 2]), 4, key="")):
        model.targets[0].positions = positions
        found.append(model(batch)["own"])
        assert model.count_targets([batch])["own"] == 2 * batch.num_images
    assert found[0] == found[1]
    torch.testing.assert_close(found[0] + found[2], whole)


def of_pixels(target, pixels, features_INE):
    return dict(features=pixels["own"])


def unreduced(target, seen, truth):
    return seen.hidden[-1], {}


def unlisted(target, seen, truth):
    return seen.hidden[-1].sum(), dict(agree=seen.hidden[-1].sum())


def alone(target, seen, truth):
    return seen.hidden[-1].sum()


def of_another_tap(target, seen, truth):
    return seen.hidden[1].sum(), {}


@pytest.mark.parametrize(
    ("method", "wrong", "words"),
    [
        ("truth", of_pixels, r"it reads 'own' of the pixels, and views\(\) names none"),
        ("loss", unreduced, r"the sum of loss\(seen, truth\) has the shape"),
        ("loss", unlisted, r"counts \['agree'\], expected \[\], as metrics lists"),
        ("loss", alone, "is Tensor, expected a sum and a dict of sums"),
        ("loss", of_another_tap, r"it reads 1 of the hidden states, and taps names \[-1\]"),
    ],
)
def test_a_mistake_of_a_target_is_told_before_a_run(monkeypatch, method, wrong, words):
    class Wrong(Features):
        pass

    setattr(Wrong, method, wrong)
    monkeypatch.setitem(TARGETS.module_dict, "Wrong", Wrong)
    parts = dict(encoder=dict(type="HFVisionEncoder", arch=SIGLIP), projector=dict(type="MLPProjector"))
    llm = dict(type="HFCausalLM", arch=LLAMA)
    with torch.device("meta"):
        model = VLM(
            **parts, llm=llm, reconstruction=[dict(name="own", type="Wrong")], vocab_size=32, load_weights=False
        )
    with pytest.raises(ValueError, match=rf"model.reconstruction\[0\]: .*{words}.* The contract: "):
        check_contracts(model)


def test_a_cached_truth_depends_on_the_source_of_its_class(monkeypatch):
    encoder, llm = nn.Identity(), nn.Identity()
    encoder.grid, encoder.num_tokens, encoder.width, llm.hidden_size, llm.num_layers = (2, 2), 4, 8, 16, 2
    target = Features(name="own", encoder=encoder, llm=llm)
    before = target.cache_key()
    assert target.cache_key() == before
    monkeypatch.setattr("asvr.base.text.inspect.getsource", lambda kind: "class Features: another truth")
    assert target.cache_key() != before
