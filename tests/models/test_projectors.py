import pytest
import torch
import torch.nn.functional as F

from asvr.models.projectors import LinearProjector, MLPProjector

FEATURES_INE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


def test_linear_is_one_map_of_every_token():
    projector = LinearProjector(in_width=6, out_width=10)
    (weight,) = [p for p in projector.parameters() if p.ndim == 2]
    (bias,) = [p for p in projector.parameters() if p.ndim == 1]
    assert torch.allclose(projector(FEATURES_INE), FEATURES_INE @ weight.T + bias, atol=1e-6)


@pytest.mark.parametrize("layers", [2, 3])
def test_mlp_has_gelu_between_its_layers_alone(layers):
    torch.manual_seed(0)
    projector = MLPProjector(in_width=6, out_width=10, layers=layers)
    weights = [p for p in projector.parameters() if p.ndim == 2]
    biases = [p for p in projector.parameters() if p.ndim == 1]
    assert [tuple(w.shape) for w in weights] == [(10, 6)] + [(10, 10)] * (layers - 1)
    x = FEATURES_INE
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.linear(F.gelu(x) if i else x, weight, bias)
    assert torch.allclose(projector(FEATURES_INE), x, atol=1e-6)


def test_norm_makes_the_scale_of_the_features_not_matter():
    torch.manual_seed(0)
    plain, normed = (MLPProjector(in_width=6, out_width=10, norm=norm) for norm in (False, True))
    assert torch.allclose(normed(FEATURES_INE), normed(100 * FEATURES_INE), atol=1e-3)
    assert not torch.allclose(plain(FEATURES_INE), plain(100 * FEATURES_INE), atol=1e-1)


def test_one_layer_names_the_other_type():
    with pytest.raises(ValueError, match=r"layers=1.*LinearProjector"):
        MLPProjector(in_width=6, out_width=10, layers=1)


def test_positions_tell_equal_tokens_apart_by_row_and_column():
    torch.manual_seed(0)
    projector = MLPProjector(in_width=6, out_width=10, positions=True)
    alike_INE = FEATURES_INE[:, :1].expand(2, 9, 6)
    with torch.inference_mode():
        projector(alike_INE)
    visual_INH = projector(alike_INE)
    visual_INH.sum().backward()  # what inference left behind can be trained with
    visual_INH = visual_INH.detach()
    apart = torch.cdist(visual_INH[0], visual_INH[0]) + torch.eye(9)
    assert apart.min() > 0.01
    grid = (visual_INH - projector.mlp(alike_INE).detach())[0].unflatten(0, (3, 3))  # one part by row and one by column
    assert torch.allclose(grid[0, 0] + grid[1, 2], grid[0, 2] + grid[1, 0], atol=1e-5)
    with pytest.raises(ValueError, match="positions=True: 5 visual tokens are not a square"):
        projector(FEATURES_INE)
