import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asvr.models.losses import CodeCrossEntropy, changed_logits, linear_cross_entropy

module = importlib.import_module("asvr.models.losses.linear_cross_entropy")
S, H, V = 11, 6, 13


def problem(bias=True):
    torch.manual_seed(0)
    linear = nn.Linear(H, V, bias=bias)
    return torch.randn(S, H, requires_grad=True), linear, torch.randint(0, V, (S,))


def gradients(loss, hidden, linear):
    return torch.autograd.grad(loss, [hidden, *linear.parameters()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("rows", [1, 3, S, 2 * S])
def test_chunks_do_not_change_values_or_gradients(monkeypatch, bias, smoothing, rows):
    hidden_SH, linear, target_S = problem(bias)
    logits_SV = linear(hidden_SH)
    plain = F.cross_entropy(logits_SV, target_S, label_smoothing=smoothing) * S
    wanted = gradients(plain, hidden_SH, linear)

    monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=rows * V))
    loss, correct = linear_cross_entropy(hidden_SH, linear, target_S, label_smoothing=smoothing)
    assert loss.dtype == torch.float32 and loss.shape == () and abs(loss - plain) < 1e-6 * plain
    assert correct == (logits_SV.argmax(-1) == target_S).sum()
    for own, other in zip(gradients(loss, hidden_SH, linear), wanted, strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("called", [False, True], ids=["plain", "called"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 2.0), (0.25, None), (-0.5, 1.5)])
def test_caps_and_scales_of_logits_have_the_right_gradient(monkeypatch, called, smoothing, scale, softcap):
    hidden_SH, linear, target_S = problem()
    logits_SV = 4 * scale * linear(hidden_SH) if called else scale * linear(hidden_SH)
    if softcap is not None:
        logits_SV = softcap * (logits_SV / softcap).tanh()
    plain = F.cross_entropy(logits_SV, target_S, label_smoothing=smoothing) * S
    wanted = gradients(plain, hidden_SH, linear)

    monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=3 * V))
    layer = nn.Sequential(linear, Times(4)) if called else linear
    options = dict(label_smoothing=smoothing, scale=scale, softcap=softcap)
    loss, correct = linear_cross_entropy(hidden_SH, layer, target_S, **options)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    assert correct == (logits_SV.argmax(-1) == target_S).sum()
    for own, other in zip(gradients(loss, hidden_SH, linear), wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=2e-6)
    with torch.no_grad():
        again, _ = linear_cross_entropy(hidden_SH, layer, target_S, **options)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)


class Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_logits_without_a_change_are_what_they_were():
    logits = torch.randn(3, 4)
    assert changed_logits(logits) is logits
    capped = changed_logits(1e4 * logits, softcap=30.0)
    assert capped.abs().max() <= 30 and torch.equal(capped.sign(), logits.sign())


@pytest.mark.parametrize("options", [{}, dict(softcap=2.0, scale=0.5)], ids=["plain", "capped"])
@pytest.mark.parametrize("limit", [4 * V, 2**20])
def test_never_more_logits_than_the_limit(monkeypatch, limit, options):
    hidden_SH, linear, target_S = problem()
    seen, original = [], F.linear

    def spy(*args):
        out = original(*args)
        seen.append(out.numel())
        return out

    monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=limit))
    monkeypatch.setattr(F, "linear", spy)
    linear_cross_entropy(hidden_SH, linear, target_S, **options)[0].backward()
    assert max(seen) <= limit and len(seen) == (1 if limit > S * V else -(-S // 4))  # none is computed again


def test_gradients_of_a_half_precision_weight_are_added_up_in_float32(monkeypatch):
    """100 chunks of one row: added up in bfloat16, each sum would lose what is under 1/256 of it."""
    torch.manual_seed(0)
    linear = nn.Linear(H, V).bfloat16()
    hidden_SH, target_S = torch.randn(100, H).bfloat16(), torch.randint(0, V, (100,))
    found = {}
    for rows in (1, 100):
        monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=rows * V))
        found[rows] = torch.autograd.grad(linear_cross_entropy(hidden_SH, linear, target_S)[0], linear.weight)[0]
    assert found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[1], found[100], rtol=2**-7, atol=2**-7)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has no linear_cross_entropy before 2.13")
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_own(bias, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=3 * V))
    hidden_SH, linear, target_S = problem(bias)
    theirs = F.linear_cross_entropy(hidden_SH, linear.weight, target_S, linear_bias=linear.bias, reduction="sum")
    ours, _ = linear_cross_entropy(hidden_SH, linear, target_S)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for own, other in zip(gradients(ours, hidden_SH, linear), gradients(theirs, hidden_SH, linear), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frozen", ["hidden", "linear"])
def test_what_is_frozen_gets_no_gradient(frozen):
    hidden_SH, linear, target_S = problem()
    (hidden_SH if frozen == "hidden" else linear).requires_grad_(False)
    loss, _ = linear_cross_entropy(hidden_SH, linear, target_S)
    (2 * loss).backward()
    grads = {"hidden": hidden_SH.grad, "linear": linear.weight.grad}
    assert grads.pop(frozen) is None
    hidden_SH, linear, target_S = problem()
    (2 * F.cross_entropy(linear(hidden_SH), target_S, reduction="sum")).backward()
    expected = linear.weight.grad if frozen == "hidden" else hidden_SH.grad
    torch.testing.assert_close(grads.popitem()[1], expected)


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    hidden_SH, linear, target_S = problem()
    with torch.no_grad():
        monkeypatch.setattr(module, "_add_gradients", lambda grads, *_: grads == [None] * 3 or pytest.fail("computed"))
        loss, _ = linear_cross_entropy(hidden_SH, linear, target_S)
    assert torch.allclose(loss, F.cross_entropy(linear(hidden_SH), target_S, reduction="sum"))


def test_softmax_is_float32_under_autocast():
    hidden_SH, linear, target_S = problem()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden_SH, linear, target_S)
        rounded = linear(hidden_SH)
    assert rounded.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert torch.allclose(loss, F.cross_entropy(rounded.float(), target_S, reduction="sum"), rtol=1e-6)


def codes(sizes=(5, 9, 3)):
    torch.manual_seed(1)
    classifiers = nn.ModuleList(nn.Linear(H, size) for size in sizes)
    codes_PD = torch.stack([torch.randint(0, size, (S,)) for size in sizes], dim=1)
    return torch.randn(S, len(sizes), H), classifiers, codes_PD


def by_depth(states_PDW, classifiers, codes_PD, **kwargs):
    return [
        F.cross_entropy(classifier(states_PDW[:, d]), codes_PD[:, d], reduction="sum", **kwargs)
        for d, classifier in enumerate(classifiers)
    ]


def test_depths_weigh_alike_and_positions_are_summed():
    states_PDW, classifiers, codes_PD = codes()
    loss, correct_D = CodeCrossEntropy()(states_PDW, classifiers, codes_PD)
    assert torch.allclose(loss, sum(by_depth(states_PDW, classifiers, codes_PD)) / 3)
    wanted = [(c(states_PDW[:, d]).argmax(-1) == codes_PD[:, d]).sum().item() for d, c in enumerate(classifiers)]
    assert correct_D.tolist() == wanted
    halves = [CodeCrossEntropy()(states_PDW[part], classifiers, codes_PD[part])[0] for part in (slice(4), slice(4, S))]
    assert torch.allclose(loss, sum(halves))


def test_depth_weights_and_smoothing():
    states_PDW, classifiers, codes_PD = codes()
    criterion = CodeCrossEntropy(depth_weights=[3.0, 1.0, 0.0], label_smoothing=0.1)
    first, second, _ = by_depth(states_PDW, classifiers, codes_PD, label_smoothing=0.1)
    assert torch.allclose(criterion(states_PDW, classifiers, codes_PD)[0], (3 * first + second) / 4)
    plain = CodeCrossEntropy(depth_weights=[3.0, 1.0, 0.0])(states_PDW, classifiers, codes_PD)[0]
    assert abs(plain - criterion(states_PDW, classifiers, codes_PD)[0]) > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(depth_weights=[-1.0, 2.0]), "depth_weights"),
        (dict(depth_weights=[0.0, 0.0]), "sum > 0"),
        (dict(label_smoothing=1.0), r"label_smoothing=1\.0"),
        (dict(label_smoothing=-0.1), "label_smoothing"),
    ],
)
def test_impossible_weights_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CodeCrossEntropy(**fields)


def test_weights_of_another_depth_are_refused():
    states_PDW, classifiers, codes_PD = codes()
    with pytest.raises(ValueError, match=r"2 entries.*depth 3"):
        CodeCrossEntropy(depth_weights=[1.0, 1.0])(states_PDW, classifiers, codes_PD)
