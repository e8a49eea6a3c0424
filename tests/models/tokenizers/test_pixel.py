import json

import pytest
import torch
import torch.nn.functional as F
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVQVAE

from asvr.models.tokenizers.pixel import CONFIG, WEIGHTS, PixelTokenizer

ARCH = dict(
    base_channels=32, channel_multiplier=[1, 1], num_res_blocks=0, latent_channels=32, num_embeddings=16, embed_dim=4
)


def make(image_size=16, seed=0, **arch):
    torch.manual_seed(seed)
    tokenizer = PixelTokenizer(image_size=image_size, arch=ARCH | arch).eval()
    torch.nn.init.normal_(tokenizer.model.quantize.embedding.weight, std=2.0)
    tokenizer.trained.fill_(True)
    return tokenizer


def pixels(count=6, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_codes_are_the_nearest_unit_vectors():
    """LlamaGen's lookup: both sides L2-normalised."""
    tokenizer = make()
    codes_IN1 = tokenizer.encode(pixels())
    assert codes_IN1.shape == (6, 64, 1) and codes_IN1.dtype == torch.int64
    with torch.no_grad():
        z = tokenizer.model.quant_conv(tokenizer.model.encoder(pixels())).flatten(2).transpose(1, 2)
    cosine = F.cosine_similarity(z[:, :, None], tokenizer.model.quantize.embedding.weight, dim=-1)
    assert torch.equal(codes_IN1[..., 0], cosine.argmax(-1))


def test_raw_vectors_give_other_codes():
    """Why the lookup is ours: transformers compares the vectors without normalising them."""
    tokenizer = make()
    raw = tokenizer.model.encode(pixels()).image_tokens.view(6, 64)
    assert (raw != tokenizer.encode(pixels())[..., 0]).float().mean() > 0.05


def test_decode_agrees_with_transformers_and_embed():
    tokenizer = make()
    codes = tokenizer.encode(pixels())
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (6, 3, 16, 16) and decoded.abs().max() <= 1
    with torch.no_grad():
        assert torch.allclose(decoded, tokenizer.model.decode(codes[..., 0]).clamp(-1, 1), atol=1e-5)
    assert tokenizer.embed(codes).shape == (6, 64, 1, 4)
    assert torch.allclose(tokenizer.embed(codes).norm(dim=-1), torch.ones(6, 64, 1))


def test_code_vectors_decode_from_their_own_codes():
    tokenizer = make()
    latents = tokenizer.embed(torch.arange(16)[None, :, None]).squeeze(-2)
    similarity = latents[0] @ tokenizer.codebook().T
    assert torch.equal(similarity.argmax(-1), torch.arange(16))


def test_autocast_does_not_change_codes():
    tokenizer = make()
    with torch.autocast("cpu", torch.bfloat16):
        inside = tokenizer.encode(pixels())
    assert torch.equal(inside, tokenizer.encode(pixels()))


@pytest.mark.parametrize("image_size, levels, side", [(16, 2, 8), (24, 3, 6), (432, 5, 27), (384, 5, 24)])
def test_the_grid_follows_from_the_picture(image_size, levels, side):
    with torch.device("meta"):
        tokenizer = PixelTokenizer(image_size=image_size, arch=ARCH | dict(channel_multiplier=[1] * levels))
    assert tokenizer.grid == (side, side) and tokenizer.num_tokens == side**2
    assert tokenizer.transform.size == (image_size, image_size)
    assert not tokenizer.fitted


def test_vq16_size():
    with torch.device("meta"):
        tokenizer = PixelTokenizer(image_size=432)
    assert tokenizer.codebook_sizes == [16384] and tokenizer.code_width == 8
    # LlamaGen's VQ-16 without the usage buffer of 65,536 entries
    assert sum(p.numel() for p in tokenizer.parameters()) == 71_883_403


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(image_size=17), "multiple of 2, such as 16"),
        (dict(arch=ARCH | dict(num_patch=3)), "num_patch"),
        (dict(arch=ARCH | dict(num_patches=3)), "leave num_patches out"),
    ],
)
def test_wrong_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PixelTokenizer(**{**dict(image_size=16, arch=ARCH), **fields})


def test_pixels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(32, 32\), expected \(16, 16\)"):
        make().encode(pixels(side=32))


def test_untrained_names_the_command():
    with pytest.raises(ValueError, match="asvr train-tokenizer"):
        PixelTokenizer(image_size=16, arch=ARCH).encode(pixels())


def test_save_and_load(tmp_path, caplog):
    tokenizer = make()
    folder = tokenizer.save_pretrained(tmp_path / "vq")
    again = PixelTokenizer(image_size=16, name=str(folder))
    assert again.fitted and again.source == str(folder)
    assert torch.equal(again.encode(pixels()), tokenizer.encode(pixels()))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert PixelTokenizer(image_size=32, name=str(folder)).grid == (16, 16)
    PixelTokenizer(image_size=16, name=str(folder), arch=dict(num_embeddings=99))
    assert "num_embeddings=16 (config: 99)" in caplog.text
    reference, info = JanusVQVAE.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and reference.config.num_patches == 8


def test_the_fingerprint_tells_what_the_weights_do_not():
    weights = make().state_dict()
    tokenizers = [
        PixelTokenizer(image_size=16, arch=ARCH | own)
        for own in ({}, dict(unit_vectors=False), dict(unit_vectors=False, depth=2))
    ]
    for tokenizer in tokenizers:
        tokenizer.load_state_dict(weights)
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers}) == 3


def test_a_checkpoint_carries_that_it_is_trained():
    other = PixelTokenizer(image_size=16, arch=ARCH).eval()
    other.load_state_dict(make().state_dict())
    assert other.fitted


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_the_vqgan_of_a_whole_janus_model(tmp_path, shard):
    tiny = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = JanusConfig(
        text_config=dict(model_type="llama", vocab_size=64, **tiny),
        vision_config=dict(image_size=16, patch_size=8, projection_dim=32, **tiny),
        vq_config=ARCH | dict(image_token_embed_dim=32, projection_dim=32, num_patches=24),
    )
    whole = JanusForConditionalGeneration(config)
    whole.save_pretrained(tmp_path, max_shard_size=shard)
    tokenizer = PixelTokenizer(image_size=16, name=str(tmp_path))
    assert tokenizer.grid == (8, 8)
    for name, tensor in whole.model.vqmodel.state_dict().items():
        assert torch.equal(tokenizer.model.state_dict()[name], tensor)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _retype(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(model_type="llama")))


def _resize(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(num_embeddings=32)))


@pytest.mark.parametrize(
    "file, damage, message",
    [
        (WEIGHTS, _cut, "cut short"),
        (WEIGHTS, lambda path: path.unlink(), "missing"),
        (CONFIG, _retype, "model_type 'llama'"),
        (CONFIG, _resize, "of another shape"),
        (CONFIG, lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, file, damage, message):
    folder = make().save_pretrained(tmp_path / "vq")
    damage(folder / file)
    with pytest.raises(ValueError, match=message):
        PixelTokenizer(image_size=16, name=str(folder))
