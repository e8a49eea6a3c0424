"""Losses, adapters, frozen weights and heads of a user's own: trained, saved and told as they mean it."""

import json
import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from data_helpers import FixedTokens
from engine_helpers import TARGET, collate, item, tiny_model
from PIL import Image
from torch import nn

from asvr.data.collate import Collate
from asvr.engine import checkpoint
from asvr.engine.optim import build_optim_wrapper
from asvr.evaluation.predictions import predicted_codes
from asvr.models.attention import set_kernel
from asvr.models.heads import LinearHead
from asvr.models.heads.base import Head, classifiers_of
from asvr.models.losses import CodeCrossEntropy, linear_cross_entropy
from asvr.models.vlm import VLM
from asvr.pretrained import Pretrained
from asvr.recipe.model_file import build_described
from asvr.recipe.model_folder import load_into, read_weights, start_from
from asvr.registry import HEADS, LLMS, LOSSES

OPTIM = dict(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")
LEARNED = dict(TARGET, loss=dict(type="LearnedTemperature"))
PICTURES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]


@LOSSES.register_module()
class LearnedTemperature(CodeCrossEntropy):
    """A loss with a weight and a buffer of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.temperature = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, states_PDW, classifiers, codes_PD):
        if self.training:
            self.seen += 1
        return super().forward(states_PDW * self.temperature, classifiers, codes_PD)


def batch_of(model, *, images: int = 2, words: int = 4):
    return collate(model)([item(words=words, image=PICTURES[i], sample_id=f"rows.json:{i}") for i in range(images)])


def step(model, wrapper):
    return model.train_step([batch_of(model)], wrapper)


# Losses --------------------------------------------------------------------------------------------------------


def test_a_loss_with_a_weight_is_trained_with_the_heads_moved_and_counted():
    model = tiny_model(reconstruction=[LEARNED])
    loss = model.targets[0].criterion
    assert any(p is loss.temperature for p in model.parameters())
    assert {"losses.semantic.temperature", "losses.semantic.seen"} <= model.state_dict().keys()
    assert loss.temperature.requires_grad
    step(model, build_optim_wrapper(model, OPTIM))
    assert loss.temperature.item() != 1 and loss.seen.item() == 1
    model.train_only(["projector"])
    model.train()
    assert not loss.temperature.requires_grad and not loss.training
    model.to("meta")
    assert loss.temperature.is_meta and loss.seen.is_meta


def test_a_loss_is_where_no_loss_is_taken_a_zero_that_other_processes_wait_for():
    model = tiny_model(reconstruction=[LEARNED])
    batch = collate(model)([item(words=4)])
    model(batch, model.count_targets([batch]))["loss"].backward()
    assert model.targets[0].criterion.temperature.grad is not None


def test_a_loss_learns_at_the_rate_of_the_heads():
    wrapper = build_optim_wrapper(tiny_model(reconstruction=[LEARNED]), dict(OPTIM, lr_scale=dict(heads=3.0)))
    rates = {id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    model = tiny_model(reconstruction=[LEARNED])
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    names = [group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"] if p.shape == (1,)]
    assert names == [pytest.approx(3e-2)]


def test_a_loss_is_in_checkpoints_and_model_folders(tmp_path):
    model = tiny_model(reconstruction=[LEARNED])
    step(model, build_optim_wrapper(model, OPTIM))
    meta = dict(stage="tune", step=1, config={}, frozen=checkpoint.frozen_fingerprints(model))
    checkpoint.save(tmp_path / "step_00000001", model=model, state={}, meta=meta)
    other = tiny_model(reconstruction=[LEARNED])
    checkpoint.load_weights(tmp_path / "step_00000001", other)
    own = model.targets[0].criterion
    assert torch.equal(other.targets[0].criterion.temperature, own.temperature)
    assert other.targets[0].criterion.seen == 1
    config = dict(type="VLM", encoder=dict(type="HFVisionEncoder"), projector=dict(type="MLPProjector"))
    config |= dict(llm=dict(type="HFCausalLM"), reconstruction=[LEARNED])
    saved = Pretrained(model=model, config=config, text_tokenizer=None, template="plain", image_aspect="square")
    saved.save_pretrained(tmp_path / "folder")
    description = json.loads((tmp_path / "folder" / "asvr.json").read_text())
    described = build_described(description["model"], tmp_path / "folder")
    load_into(described, read_weights(tmp_path / "folder", description), tmp_path)
    assert torch.equal(described.targets[0].criterion.temperature, own.temperature)
    start_from(other, tmp_path / "folder", cached=False)
    assert "losses" in checkpoint.own_components(other)  # its buffers move, whatever is trained


def test_what_earlier_versions_saved_without_weights_of_losses_loads(tmp_path):
    model = tiny_model(reconstruction=[LEARNED])
    meta = dict(stage="tune", step=1, config={}, frozen={})
    before = tiny_model()  # of the same parts
    checkpoint.save(tmp_path / "step_00000001", model=before, state={}, meta=meta)
    checkpoint.load_weights(tmp_path / "step_00000001", model)
    weights = dict(before.state_dict())
    load_into(tiny_model(reconstruction=[LEARNED]), weights, tmp_path)
    with pytest.raises(ValueError, match="missing: .'losses.semantic.seen'"):
        load_into(model, weights | {"losses.semantic.temperature": torch.ones(1)}, tmp_path)


def test_checkpoints_of_losses_without_weights_are_as_before(tmp_path):
    model = tiny_model()
    assert "losses" not in model.components() and not any("losses" in key for key in model.state_dict())
    meta = dict(stage="tune", step=1, config={}, frozen=checkpoint.frozen_fingerprints(model))
    checkpoint.save(tmp_path / "step_00000001", model=model, state={}, meta=meta)
    checkpoint.load_weights(tmp_path / "step_00000001", tiny_model())


@LOSSES.register_module()
class HiddenWeight(CodeCrossEntropy):
    def __init__(self):
        super().__init__()
        self.weights = [nn.Parameter(torch.ones(3))]


@LOSSES.register_module()
class NoModule:
    def __init__(self, hidden: bool = False):
        self.loss = CodeCrossEntropy()
        self.layers = [nn.Linear(2, 2)] if hidden else []

    def __call__(self, *args):
        return self.loss(*args)


@HEADS.register_module()
class HiddenLayers(LinearHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = {"first": nn.Linear(2, 2)}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (dict(loss=dict(type="HiddenWeight")), "HiddenWeight.weights"),
        (dict(loss=dict(type="NoModule", hidden=True)), "NoModule.layers"),
        (dict(head=dict(type="HiddenLayers")), "HiddenLayers.layers"),
    ],
)
def test_weights_that_torch_does_not_see_are_refused(change, where):
    with pytest.raises(ValueError, match=f"{where} holds .* where torch does not see them"):
        tiny_model(reconstruction=[dict(TARGET, **change)])


def test_a_loss_that_is_no_module_and_holds_nothing_is_as_good():
    model = tiny_model(reconstruction=[dict(TARGET, loss=dict(type="NoModule"))])
    assert torch.equal(model(batch_of(model))["semantic"], tiny_model()(batch_of(model))["semantic"])


def test_a_part_in_no_component_is_refused():
    model = tiny_model()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"components\(\) leaves out extra.weight, extra.bias \(2 in all\)"):
        model.train_only(["heads"])


# A wrapped LM head ---------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """What LoRA makes of a linear layer."""

    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, generator=torch.Generator().manual_seed(1)))
        self.up = nn.Parameter(torch.randn(base.out_features, rank, generator=torch.Generator().manual_seed(2)))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, inputs, out: 2 * out)
    return layer


def parametrized(layer: nn.Linear) -> nn.Linear:
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    nn.utils.parametrize.register_parametrization(layer, "weight", Half())
    return layer


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize("wrap", [Adapter, hooked, parametrized, lambda layer: Scaled(5, 40)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_layer_that_is_more_than_its_weight_goes_through_itself(wrap, smoothing, monkeypatch):
    monkeypatch.setitem(sys.modules["asvr.models.losses.linear_cross_entropy"].MAX_LOGITS, "cpu", 40 * 3)
    torch.manual_seed(0)
    layer, target = wrap(nn.Linear(5, 40)), torch.randint(40, (11,))
    hidden = torch.randn(11, 5, requires_grad=True)
    leaves = [hidden, *(p for p in layer.parameters() if p.requires_grad)]
    loss, correct = linear_cross_entropy(hidden, layer, target, label_smoothing=smoothing)
    expected = F.cross_entropy(layer(hidden), target, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    assert correct == (layer(hidden).argmax(-1) == target).sum()
    for own, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(own, other)


def test_an_adapter_of_the_lm_head_is_trained_and_answers_as_it_is_trained(caplog):
    model = tiny_model(train=["llm"])
    model.llm.model.lm_head = Adapter(model.llm.lm_head)
    batch = batch_of(model)
    sys.modules["asvr.models.losses.linear_cross_entropy"]._log_slow.cache_clear()
    with caplog.at_level(logging.INFO, logger="asvr"):
        out = model(batch)
        model(batch)
    assert caplog.text.count("cross-entropy calls Adapter, which is not a plain linear layer") == 1
    embeds, _ = model.embed(batch)
    logits = model.llm.lm_head(model.llm.hidden(embeds)[-1].flatten(0, 1)[batch.text_source_S])
    torch.testing.assert_close(out["text"], F.cross_entropy(logits, batch.text_target_S, reduction="sum"))
    out["text"].backward()
    assert model.llm.lm_head.up.grad.abs().max() > 0 and model.llm.lm_head.base.weight.grad is None
    new = model.eval().llm.generate(embeds, batch.attention_mask_BT.long(), max_new_tokens=1, do_sample=False)
    last = model.llm.hidden(embeds)[-1][:, -1]
    assert torch.equal(new[:, 0], model.llm.lm_head(last).argmax(-1))


def test_a_plain_layer_is_fused_as_ever(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda *_: pytest.fail("the layer was called"))
    loss, _ = linear_cross_entropy(torch.randn(4, 5), nn.Linear(5, 7), torch.tensor([0, 1, 2, 3]))
    assert loss.isfinite()


# What a component froze ----------------------------------------------------------------------------------------


@LLMS.register_module()
class AdaptedLM(LLMS.get("HFCausalLM")):
    """Its base is frozen, an adapter of its LM head is not."""

    def __init__(self, everything: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.model.requires_grad_(False)
        if not everything:
            self.model.lm_head = Adapter(self.model.lm_head)


def adapted(**kwargs):
    whole = tiny_model()
    arch = whole.llm.model.config.to_diff_dict() | dict(model_type="llama")
    llm = dict(type="AdaptedLM", arch=arch, **kwargs)
    encoder = dict(type="HFVisionEncoder", arch=whole.encoder.model.config.to_diff_dict(), layer=-2)
    encoder["arch"] |= dict(model_type="siglip_vision_model")
    return VLM(encoder=encoder, projector=dict(type="MLPProjector"), llm=llm, reconstruction=[], vocab_size=32)


def test_what_a_component_froze_stays_frozen():
    model = adapted()
    for names in (["llm"], ["projector"], ["projector", "llm"], ["llm"]):
        model.train_only(names)
        trained = {key for key, p in model.llm.named_parameters() if p.requires_grad}
        assert trained == ({"model.lm_head.down", "model.lm_head.up"} if "llm" in names else set())
        assert all(p.requires_grad == ("projector" in names) for p in model.projector.parameters())


def test_what_is_frozen_later_by_another_stays_frozen_too():
    model = tiny_model(train=["llm", "heads"])
    frozen = model.heads["semantic"].layers[0].qkv.weight.requires_grad_(False)
    model.train_only(["heads"])
    assert not frozen.requires_grad and model.heads["semantic"].layers[0].out.weight.requires_grad


def test_a_component_with_nothing_left_to_train_is_told():
    with pytest.raises(ValueError, match=r"train=\['llm'\]: every weight of llm was frozen where it was built"):
        adapted(everything=True).train_only(["llm"])


# Heads that look at a whole image ------------------------------------------------------------------------------


class WholeImage(Head):
    """Each token sees the mean of its image."""

    def __init__(self, *, hidden_size, codebook_sizes, code_width):
        super().__init__()
        self.classifiers = classifiers_of(hidden_size, codebook_sizes)

    def spread(self, states_PH):
        return states_PH.unsqueeze(1).expand(-1, len(self.classifiers), -1)


@HEADS.register_module()
class Blind(WholeImage):
    """By the order of rows, 4 an image."""

    def forward(self, hidden_PH, vectors_PDC):
        mean_INH = hidden_PH.view(-1, 4, hidden_PH.shape[-1]).mean(1, keepdim=True).expand(-1, 4, -1)
        return self.spread(hidden_PH + mean_INH.flatten(0, 1))


@HEADS.register_module()
class MeanOfAll(WholeImage):
    """Takes any number of rows, and mixes them by nothing, until it is trained."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mix = nn.Linear(kwargs["hidden_size"], kwargs["hidden_size"], bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, hidden_PH, vectors_PDC):
        return self.spread(hidden_PH + self.mix(hidden_PH.mean(0, keepdim=True)))


@HEADS.register_module()
class Told(WholeImage):
    def forward(self, hidden_PH, vectors_PDC, *, image_P, cell_P):
        self.told = image_P.tolist(), cell_P.tolist()
        one_hot_PI = F.one_hot(image_P).to(hidden_PH.dtype)
        mean_IH = (one_hot_PI.T @ hidden_PH) / one_hot_PI.sum(0)[:, None]
        return self.spread(hidden_PH + mean_IH[image_P])


def with_head(name: str, **changes):
    return tiny_model(reconstruction=[dict(TARGET, head=dict(type=name), **changes)])


@HEADS.register_module()
class Careful(WholeImage):
    """Looks at each row alone, and at what it is given."""

    def forward(self, hidden_PH, vectors_PDC):
        assert hidden_PH.isfinite().all()
        return self.spread(hidden_PH)


def test_a_head_that_refuses_what_is_not_finite_is_tried_with_other_numbers():
    assert with_head("Careful", supervise=2).targets[0].whole_images is None


@pytest.mark.parametrize(
    ("head", "why"),
    [("Blind", r"fails with three tokens \(RuntimeError: shape"), ("MeanOfAll", "looks at other tokens of an image")],
)
def test_a_head_that_mixes_rows_and_is_not_told_of_them_is_refused_where_some_are_left_out(head, why):
    with pytest.raises(ValueError, match=rf"supervise=2: {head} {why}"):
        with_head(head, supervise=2)
    model = with_head(head)
    model(batch_of(model))  # all tokens have a hidden state in front
    first = collate(model)([dict(item(image=PICTURES[0]), input_ids=[-200, 5, 6], labels=[-100, 5, 6])])
    with pytest.raises(ValueError, match=rf"target 'semantic': {head} {why}"):
        model(first)
    with_head(head, shift=0)(first)


def test_library_heads_are_not_refused():
    for head in (dict(type="LinearHead"), TARGET["head"], dict(TARGET["head"], type="ReleasedHead")):
        assert not tiny_model(reconstruction=[dict(TARGET, head=head, supervise=2)]).targets[0].whole_images


def test_a_head_is_told_which_image_and_which_cell_a_row_is():
    model = with_head("Told", supervise=2)
    batch = batch_of(model, images=3)
    source_P, token_P = [], []
    target, places = model.targets[0], model.targets[0].places
    target.places = lambda seen: [x.append(y) or y for x, y in zip((source_P, token_P), places(seen), strict=True)]
    model(batch)
    told = model.heads["semantic"].told
    assert told == ((token_P[0] // 4).tolist(), (token_P[0] % 4).tolist())
    assert sorted(told[0]) == [0, 0, 1, 1, 2, 2]
    model.eval()(batch)
    assert model.heads["semantic"].told == ([0] * 4 + [1] * 4 + [2] * 4, [0, 1, 2, 3] * 3)


def test_the_mean_of_an_image_is_its_own_in_training_evaluation_and_packed_rows():
    model = with_head("Told", shift=1)
    target = model.targets[0]
    rows = [item(words=3, image=PICTURES[i], sample_id=f"rows.json:{i}") for i in range(2)]
    first = dict(item(image=PICTURES[2]), input_ids=[-200, 5, 6], labels=[-100, 5, 6], sample_id="rows.json:2")
    batch = collate(model)([*rows, first])  # the last one has no hidden state for its first token
    out = model(batch)
    assert model.heads["semantic"].told[0] == [0] * 4 + [1] * 4 + [2] * 3
    assert model.heads["semantic"].told[1] == [0, 1, 2, 3] * 2 + [1, 2, 3]
    alone = [model(collate(model)([row]))["semantic"] for row in (*rows, first)]
    torch.testing.assert_close(out["semantic"], torch.stack(alone).sum())
    set_kernel(model, "sdpa")
    packed = Collate(layout=FixedTokens(4), views=model.views(), pad_id=0, packed=True)([*rows, first])
    torch.testing.assert_close(model(packed)["semantic"], out["semantic"])
    codes = predicted_codes(model, target, batch)
    assert codes.probability_IND[2, 0].isnan().all() and not codes.probability_IND[2, 1:].isnan().any()
    assert model.heads["semantic"].told[0] == [0] * 4 + [1] * 4 + [2] * 3


def test_heads_sample_with_the_places_they_ask_for():
    model = with_head("Told")
    head, tokenizer = model.heads["semantic"], model.targets[0].tokenizer
    places = dict(image_P=torch.tensor([0, 0, 1, 1]), cell_P=torch.tensor([0, 1, 0, 1]))
    codes = head.sample(torch.randn(4, 16), tokenizer.embed, **places)
    assert codes.shape == (4, 2) and head.told == ([0, 0, 1, 1], [0, 1, 0, 1])
