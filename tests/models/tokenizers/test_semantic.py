import json

import pytest
import torch

from asvr.models.tokenizers.semantic import DESCRIPTION, WEIGHTS, SemanticTokenizer
from asvr.registry import ENCODERS

SIZES = dict(depth=2, codebook_size=16)


def tiny_encoder(**kwargs):
    return ENCODERS.build(dict(type="TinyPatchEncoder", **kwargs))


def pixels(count=64, side=16, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def fit(encoder=None, **kwargs):
    tokenizer = SemanticTokenizer(encoder=encoder or tiny_encoder(), **{**SIZES, **kwargs})
    batches = [tokenizer.features(pixels(seed=i)) for i in range(3)]
    tokenizer.fit(batches, progress=False)
    return tokenizer


def test_encode_is_quantize_of_the_encoder():
    tokenizer = fit()
    codes_IND = tokenizer.encode(pixels(3))
    assert codes_IND.shape == (3, 16, 2) and codes_IND.dtype == torch.int64
    with torch.no_grad():
        assert torch.equal(codes_IND, tokenizer.quantize(tokenizer.encoder(pixels(3))))
    assert tokenizer.embed(codes_IND).shape == (3, 16, 2, 8)
    assert tokenizer.grid == (4, 4) and tokenizer.depth == 2 and tokenizer.code_width == 8
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(pixels(3)), codes_IND)


def test_fit_reports_each_level_and_uses_every_batch():
    tokenizer = fit()
    errors = tokenizer.statistics["relative_error"]
    assert 0 < errors[1] < errors[0] < 1
    features = tokenizer.features(pixels())
    one, more = (SemanticTokenizer(encoder=tiny_encoder(), **SIZES) for _ in range(2))
    one.fit([features], progress=False)
    more.fit([features, 3 * features], progress=False)
    assert not torch.equal(one.quantizer.codebooks[0].weight, more.quantizer.codebooks[0].weight)


def test_fit_refuses_nothing_and_nan():
    tokenizer = SemanticTokenizer(encoder=tiny_encoder(), **SIZES)
    with pytest.raises(ValueError, match="no batch"):
        tokenizer.fit([], progress=False)
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.fit([torch.full((4, 8), float("nan"))], progress=False)


def test_unfitted_names_the_command():
    tokenizer = SemanticTokenizer(encoder=tiny_encoder(), **SIZES)
    assert not tokenizer.fitted
    with pytest.raises(ValueError, match="asvr train-tokenizer"):
        tokenizer.encode(pixels(1))
    with pytest.raises(ValueError, match="empty"):
        tokenizer.save_pretrained("unused")


def test_a_shared_encoder_is_no_submodule_and_an_own_one_is_frozen():
    shared = SemanticTokenizer(encoder=tiny_encoder(), **SIZES)
    assert not list(shared.parameters()) and all(k.startswith("quantizer.") for k in shared.state_dict())
    own = SemanticTokenizer(encoder=dict(type="TinyPatchEncoder"), **SIZES).train()
    assert len(list(own.parameters())) == 2 and not any(p.requires_grad for p in own.parameters())
    assert not own.encoder.training
    with pytest.raises(ValueError, match="encoder"):
        SemanticTokenizer(encoder=None, **SIZES)


def test_save_and_load(tmp_path):
    tokenizer = fit()
    folder = tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [DESCRIPTION, WEIGHTS]
    again = SemanticTokenizer(encoder=dict(type="TinyPatchEncoder"), name=str(folder), **SIZES)
    assert again.fitted and again.source == str(folder) and again.statistics == tokenizer.statistics
    assert torch.equal(again.encode(pixels(4)), tokenizer.encode(pixels(4)))
    assert again.fingerprint() == tokenizer.fingerprint()
    again.save_pretrained(folder)  # replaces what it wrote before
    assert len(list(tmp_path.iterdir())) == 1


def test_save_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="mine.txt"):
        fit().save_pretrained(tmp_path)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(encoder=dict(type="TinyPatchEncoder", seed=1)), "encoder.fingerprint"),
        (dict(encoder=dict(type="TinyPatchEncoder", side=32)), "encoder.grid is .4, 4. in the folder, .8, 8. here"),
        (dict(codebook_size=32), "codebook_sizes is .16, 16. in the folder, .32, 32. here"),
        (dict(shared=True), "shared is False"),
    ],
)
def test_a_tokenizer_of_something_else_is_refused(tmp_path, change, message):
    folder = fit().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=message):
        SemanticTokenizer(**{**SIZES, "encoder": dict(type="TinyPatchEncoder"), "name": str(folder), **change})


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "file, damage",
    [
        (WEIGHTS, _cut),
        (WEIGHTS, lambda path: path.unlink()),
        (DESCRIPTION, lambda path: path.write_text("{")),
        (DESCRIPTION, lambda path: path.write_text("[]")),
        (DESCRIPTION, lambda path: path.unlink()),
    ],
)
def test_damaged_files_are_named(tmp_path, file, damage):
    folder = fit().save_pretrained(tmp_path / "tokenizer")
    damage(folder / file)
    with pytest.raises(ValueError, match=file):
        SemanticTokenizer(encoder=tiny_encoder(), name=str(folder), **SIZES)


def test_weights_of_another_shape_are_refused(tmp_path):
    folder = fit().save_pretrained(tmp_path / "tokenizer")
    description = json.loads((folder / DESCRIPTION).read_text())
    description["codebook_sizes"] = [16, 8]
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"another shape.*\(16, 8\), expected \(8, 8\)"):
        SemanticTokenizer(encoder=tiny_encoder(), name=str(folder), depth=2, codebook_size=[16, 8])


def test_missing_folder_names_the_command(monkeypatch):
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    with pytest.raises(ValueError, match="asvr train-tokenizer"):
        SemanticTokenizer(encoder=tiny_encoder(), name="asvr/not-there", **SIZES)


def test_fingerprint_depends_on_codebooks_and_encoder():
    base = fit()
    own = SemanticTokenizer(encoder=dict(type="TinyPatchEncoder"), **SIZES)
    own.quantizer.load_state_dict(base.quantizer.state_dict())
    assert own.fingerprint() == base.fingerprint()
    assert fit(encoder=tiny_encoder(seed=1)).fingerprint() != base.fingerprint()


def test_on_meta_device():
    with torch.device("meta"):
        tokenizer = SemanticTokenizer(
            encoder=dict(type="TinyPatchEncoder"), name="asvr/not-there", load_weights=False, **SIZES
        )
    assert not tokenizer.fitted and tokenizer.codebook_sizes == [16, 16]
