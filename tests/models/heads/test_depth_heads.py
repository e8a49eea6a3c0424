import pytest
import torch
import torch.nn.functional as F

from asvr.models.heads import DepthTransformerHead, LinearHead, ReleasedHead

P, H, C, W = 5, 12, 6, 16
SIZES = [7, 5, 9, 4]
D = len(SIZES)
ALL = {
    "depth": lambda: DepthTransformerHead(
        hidden_size=H, codebook_sizes=SIZES, code_width=C, width=W, layers=2, num_heads=4
    ),
    "released": lambda: ReleasedHead(hidden_size=H, codebook_sizes=SIZES, code_width=C, width=W, layers=2, num_heads=4),
    "linear": lambda: LinearHead(hidden_size=H, codebook_sizes=SIZES, code_width=C),
}
DEPTH = ("depth", "released")


def build(kind):
    torch.manual_seed(0)
    return ALL[kind]()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(P, H, generator=generator), torch.randn(P, D, C, generator=generator)


def codebooks():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, C, generator=generator) for size in SIZES]


def embed(codes_PD):
    return torch.stack([book[codes] for book, codes in zip(codebooks(), codes_PD.unbind(1), strict=True)], dim=1)


@pytest.mark.parametrize("kind", DEPTH)
def test_a_depth_sees_the_codes_before_it_and_no_others(kind):
    head, (hidden_PH, vectors_PDC) = build(kind), inputs()
    vectors_PDC.requires_grad_()
    states_PDW = head(hidden_PH, vectors_PDC)
    assert states_PDW.shape == (P, D, W)
    for d in range(D):
        (gradient_PDC,) = torch.autograd.grad(states_PDW[:, d].square().sum(), vectors_PDC, retain_graph=True)
        seen = gradient_PDC.abs().sum((0, 2)) > 0
        assert seen.tolist() == [before < d for before in range(D)]


@pytest.mark.parametrize("kind", ALL)
def test_positions_are_independent(kind):
    head, (hidden_PH, vectors_PDC) = build(kind), inputs()
    changed_PH, changed_PDC = hidden_PH.clone(), vectors_PDC.clone()
    changed_PH[2] += 1
    changed_PDC[2] -= 1
    before, after = head(hidden_PH, vectors_PDC), head(changed_PH, changed_PDC)
    others = [0, 1, 3, 4]
    assert torch.allclose(before[others], after[others], atol=1e-6)
    assert not torch.allclose(before[2], after[2], atol=1e-2)


@pytest.mark.parametrize("kind", ALL)
def test_every_depth_has_its_own_codebook_size_and_gradient(kind):
    head, (hidden_PH, vectors_PDC) = build(kind), inputs()
    states_PDW = head(hidden_PH, vectors_PDC)
    logits = [classifier(states_PDW[:, d]) for d, classifier in enumerate(head.classifiers)]
    assert [tuple(x.shape) for x in logits] == [(P, size) for size in SIZES]
    sum(x.logsumexp(-1).sum() for x in logits).backward()
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def reference_states(head, hidden_PH, vectors_PDC, residual_from_norm):
    """The released head written out: torch's own attention, the feed-forward as einsum over flat weights."""
    weights = head.state_dict()
    z = F.gelu(hidden_PH @ weights["input.0.weight"].T + weights["input.0.bias"])
    z = z @ weights["input.2.weight"].T + weights["input.2.bias"]
    steps, total = [z], torch.zeros(P, C)
    for d in range(D - 1):
        total = total + vectors_PDC[:, d]
        steps.append(total @ weights["code_input.weight"].T + weights["code_input.bias"])
    x = torch.stack(steps, dim=1)
    for i in range(2):
        part = {k.removeprefix(f"layers.{i}."): v for k, v in weights.items() if k.startswith(f"layers.{i}.")}
        attention = torch.nn.MultiheadAttention(W, 4, batch_first=True)
        attention.load_state_dict(
            {
                "in_proj_weight": part["qkv.weight"],
                "in_proj_bias": part["qkv.bias"],
                "out_proj.weight": part["out.weight"],
                "out_proj.bias": part["out.bias"],
            }
        )
        normed = rms_norm(x, part["norm1.weight"])
        hidden = torch.ones(D, D, dtype=torch.bool).triu(1)
        x = x + attention(normed, normed, normed, attn_mask=hidden, need_weights=False)[0]
        # (2E, E * D) and (E, 2E * D), as a checkpoint of the released code has them.
        linear1 = part["feed_forward.up_DFW"].permute(1, 0, 2).reshape(2 * W, D * W)
        linear2 = part["feed_forward.down_DWF"].permute(1, 0, 2).reshape(W, D * 2 * W)
        normed = rms_norm(x, part["norm2.weight"])
        up = F.gelu(torch.einsum("bld,tld->blt", normed, linear1.reshape(2 * W, D, W)))
        down = torch.einsum("blt,dlt->bld", up, linear2.reshape(W, D, 2 * W))
        x = (normed if residual_from_norm else x) + down
    return rms_norm(x, weights["norm.weight"])


@pytest.mark.parametrize(("kind", "residual_from_norm"), [("released", True), ("depth", False)])
def test_states_are_those_of_the_formula(kind, residual_from_norm):
    head, (hidden_PH, vectors_PDC) = build(kind), inputs()
    with torch.no_grad():
        for parameter in head.parameters():  # so that norms and biases count
            parameter += 0.1 * torch.randn_like(parameter)
        own = head(hidden_PH, vectors_PDC)
        assert torch.allclose(own, reference_states(head, hidden_PH, vectors_PDC, residual_from_norm), atol=1e-5)
        assert not torch.allclose(
            own, reference_states(head, hidden_PH, vectors_PDC, not residual_from_norm), atol=1e-2
        )


def test_size_of_the_released_head():
    with torch.device("meta"):
        head = ReleasedHead(hidden_size=4096, codebook_sizes=[16384] * 8, code_width=1152)
    total = sum(p.numel() for p in head.parameters())
    mlp = sum(p.numel() for p in head.input.parameters())
    assert total - mlp == 723_970_048
    assert mlp == 4096 * 2048 + 2048 + 2048 * 2048 + 2048


def test_unused_biases_of_the_released_head_are_frozen():
    head, plain = build("released"), build("depth")
    frozen = [p.numel() for p in head.parameters() if not p.requires_grad]
    assert sorted(frozen) == sorted([2 * W, W] * 2)
    trained = sum(p.numel() for p in head.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_greedy_samples_are_the_teacher_forced_predictions_on_themselves(kind):
    head, (hidden_PH, _) = build(kind), inputs()
    codes_PD = head.sample(hidden_PH, embed)
    states_PDW = head(hidden_PH, embed(codes_PD))
    for d, classifier in enumerate(head.classifiers):
        assert torch.equal(classifier(states_PDW[:, d]).argmax(-1), codes_PD[:, d])


def test_sampling_follows_temperature_and_generator():
    head = build("depth")
    hidden_PH = inputs()[0][:1].expand(3000, -1)

    def draw(seed):
        return head.sample(hidden_PH, embed, temperature=0.5, generator=torch.Generator().manual_seed(seed))

    codes_PD = draw(0)
    assert torch.equal(codes_PD, draw(0)) and not torch.equal(codes_PD, draw(1))
    with torch.no_grad():
        logits = head.classifiers[0](head(hidden_PH[:1], torch.zeros(1, D, C))[:, 0])
    wanted = (logits / 0.5).softmax(-1)[0]
    assert torch.allclose(codes_PD[:, 0].bincount(minlength=SIZES[0]) / 3000, wanted, atol=0.05)


def test_linear_head_does_not_look_at_codes():
    head, (hidden_PH, vectors_PDC) = build("linear"), inputs()
    assert torch.equal(head(hidden_PH, vectors_PDC), head(hidden_PH, vectors_PDC + 1))
    assert torch.equal(head(hidden_PH, vectors_PDC)[:, 1], hidden_PH)


def test_a_width_that_the_attention_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"width=10.*num_heads=4"):
        DepthTransformerHead(hidden_size=H, codebook_sizes=SIZES, code_width=C, width=10, num_heads=4)


@pytest.mark.parametrize("kind", DEPTH)
def test_under_autocast_the_residual_stream_stays_float32(kind):
    head, (hidden, vectors) = build(kind), inputs()
    seen = []
    for layer in head.layers:
        layer.norm2.register_forward_hook(lambda module, given, out: seen.append((given[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(hidden.bfloat16(), vectors)
    assert seen == [(torch.float32, torch.float32)] * len(head.layers) and out.dtype == torch.float32
    assert torch.allclose(out, head(hidden, vectors), atol=0.1)
