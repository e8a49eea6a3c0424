"""Cross-entropy against several classes of a row, and of several classifiers in one softmax."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asvr.models.losses import JoinedClassifier, linear_cross_entropy

module = importlib.import_module("asvr.models.losses.linear_cross_entropy")
S, H, V, K = 11, 6, 13, 3


class Adapted(nn.Linear):
    """No plain linear layer: it is called."""


@pytest.fixture(params=[1, 4, 2 * S], ids=lambda rows: f"{rows} rows at once")
def chunks(request, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=request.param * V))


def problem(cls=nn.Linear):
    torch.manual_seed(0)
    linear = cls(H, V)
    target_SK = torch.stack([torch.randperm(V)[:K] for _ in range(S)])
    shares_SK = torch.rand(S, K).softmax(-1)
    return torch.randn(S, H, requires_grad=True), linear, target_SK, shares_SK


def straight(logits_SV, target_SK, shares_SK, smoothing):
    """Row by row: -sum_v q_v log softmax(logits)_v, with q = (1 - s) shares + s / V."""
    total = 0
    for logits, target, shares in zip(logits_SV.double(), target_SK, shares_SK.double(), strict=True):
        q = torch.full((len(logits),), smoothing / len(logits), dtype=torch.double)
        for k, share in zip(target.tolist(), shares, strict=True):
            q[k] += (1 - smoothing) * share
        total = total - (q * (logits - logits.exp().sum().log())).sum()
    return total


@pytest.mark.parametrize("cls", [nn.Linear, Adapted])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_targets_are_a_straight_line_computation(chunks, cls, smoothing):
    hidden, linear, target, shares = problem(cls)
    logits = linear(hidden)
    wanted = straight(logits, target, shares, smoothing)
    loss, correct = linear_cross_entropy(hidden, linear, target, shares_SK=shares, label_smoothing=smoothing)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert correct == (logits.argmax(-1) == target[:, 0]).sum()
    tensors = [hidden, *linear.parameters()]
    for own, other in zip(
        torch.autograd.grad(loss, tensors), torch.autograd.grad(wanted.float(), tensors), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_class_with_all_of_the_target_is_the_hard_loss_bit_for_bit(chunks, smoothing):
    hidden, linear, target, _ = problem()
    found = []
    for given in (
        dict(target=target[:, 0]),
        dict(target=target[:, :1], shares_SK=torch.ones(S, 1)),
    ):
        loss, correct = linear_cross_entropy(hidden, linear, label_smoothing=smoothing, **given)
        found.append([loss, correct, *torch.autograd.grad(loss, [hidden, *linear.parameters()])])
    assert all(torch.equal(hard, soft) for hard, soft in zip(*found, strict=True))


@pytest.mark.parametrize("frozen", ["hidden", "first", "second"])
def test_a_frozen_part_of_joined_layers_gets_no_gradient(frozen):
    hidden, linear, target, _ = problem()
    more = nn.Linear(H, 5)
    parts = dict(hidden=[hidden], first=list(linear.parameters()), second=list(more.parameters()))
    for tensor in parts[frozen]:
        tensor.requires_grad_(False)
    loss, _ = linear_cross_entropy(hidden, JoinedClassifier(linear, more), target[:, 0])
    loss.backward()
    for name, tensors in parts.items():
        assert all((tensor.grad is None) == (name == frozen) for tensor in tensors)


@pytest.mark.parametrize("cls", [nn.Linear, Adapted])
def test_joined_classifiers_share_a_softmax(chunks, cls):
    """Plain layers by their weights, others called: both are one layer with all rows."""
    hidden, first, _, _ = problem(cls)
    second = nn.Linear(H, 5, bias=False)
    target = torch.randint(0, V + 5, (S,))
    logits = torch.cat([first(hidden), second(hidden)], -1)
    wanted = F.cross_entropy(logits, target, reduction="sum")
    loss, correct = linear_cross_entropy(hidden, JoinedClassifier(first, second), target)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    assert correct == (logits.argmax(-1) == target).sum()
    tensors = [hidden, *first.parameters(), second.weight]
    for own, other in zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(wanted, tensors), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cls", [nn.Linear, Adapted])
@pytest.mark.parametrize("soft", [False, True])
def test_without_rows_the_loss_and_its_gradients_are_zero(cls, soft):
    """Of a plain layer and of one that is called alike."""
    hidden, linear = torch.zeros(0, H, requires_grad=True), cls(H, V)
    target = torch.zeros((0, K) if soft else 0, dtype=torch.long)
    loss, correct = linear_cross_entropy(hidden, linear, target, shares_SK=torch.zeros(0, K) if soft else None)
    loss.backward()
    assert loss == 0 and correct == 0 and all(not p.grad.any() for p in linear.parameters())


def test_joined_plain_layers_hold_no_more_logits_than_the_limit(monkeypatch):
    hidden, first, _, _ = problem()
    seen, original = [], F.linear
    monkeypatch.setattr(module, "MAX_LOGITS", dict(cpu=2 * (V + 5)))
    monkeypatch.setattr(F, "linear", lambda *args: seen.append(args) or original(*args))
    linear_cross_entropy(hidden, JoinedClassifier(first, nn.Linear(H, 5)), torch.zeros(S, dtype=torch.long))[0]
    assert len(seen) == 2 * -(-S // 2) and max(len(args[0]) for args in seen) == 2


def test_joined_layers_of_two_precisions():
    """A frozen LM head in bfloat16 and trained rows in float32: both ways of computing agree within its rounding."""
    torch.manual_seed(0)
    first, second = nn.Linear(H, V).bfloat16().requires_grad_(False), nn.Linear(H, 5)
    called = Adapted(H, V).bfloat16().requires_grad_(False)
    called.load_state_dict(first.state_dict())
    hidden, target = torch.randn(S, H).bfloat16(), torch.randint(0, V + 5, (S,))
    found = [linear_cross_entropy(hidden, JoinedClassifier(layer, second), target) for layer in (first, called)]
    grads = [torch.autograd.grad(loss, second.weight)[0] for loss, _ in found]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-2, atol=0)
    torch.testing.assert_close(*grads, rtol=5e-2, atol=5e-2)
    assert grads[0].dtype == torch.float32
