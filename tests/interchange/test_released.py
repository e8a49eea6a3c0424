"""The released objective to the last digit: numbers of the released code on a small random model.

tests/data/golden holds its weights in the released layout, its inputs and what it computed (float32, CPU).
"""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_helpers import ROOT
from safetensors.torch import load_file, save_file

from asvr.base.checkpoint_files import open_checkpoint
from asvr.data.batch import IMAGE_TOKEN, Batch
from asvr.data.collate import Collate
from asvr.interchange.dualtoken import import_dualtoken
from asvr.interchange.released import RQVAE, import_released, plan, released_tensors
from asvr.models.attention import use_attention
from asvr.recipe.config import load_config
from asvr.registry import MODELS

GOLDEN = ROOT / "tests" / "data" / "golden"
RELATIVE = 1e-5
HEADS = 4  # of its SigLIP towers
LLM = dict(
    model_type="llama",
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
)
TOWER = dict(
    model_type="siglip_vision_model",
    hidden_size=32,
    intermediate_size=128,
    num_hidden_layers=27,
    num_attention_heads=HEADS,
    image_size=384,
    patch_size=14,
)
HEAD = "model.vision_tokenizer.vision_tower.rqtransformer_semantic."
# The released name of each weight whose gradient's norm is known -> ours.
GRADIENTS = {
    "lm_head.weight": "llm.model.lm_head.weight",
    "model.embed_tokens.weight": "llm.model.model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight": "llm.model.model.layers.0.self_attn.q_proj.weight",
    "model.mm_projector.0.weight": "projector.mlp.0.weight",
    "projector.0.weight": "heads.semantic.input.0.weight",
    f"{HEAD}in_mlp_1.weight": "heads.semantic.code_input.weight",
    f"{HEAD}head_transformer.0.linear1.weight": "heads.semantic.layers.0.feed_forward.up_DFW",
    f"{HEAD}heads.3.weight": "heads.semantic.classifiers.3.weight",
}


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The weights beside a ``config.json`` as the released code writes it."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "model.safetensors").symlink_to(GOLDEN / "model.safetensors")
    config = dict(LLM, model_type="asvr_llama", mm_vision_tower="siglip-so400m-patch14-384", mm_vision_select_layer=-2)
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    """``asvr_vicuna7b_released.py`` with the sizes of the golden model."""
    own = dict(type="HFVisionEncoder", name=None, dtype="float32", layer=-2, arch=TOWER)
    cfg = load_config(
        ROOT / "configs/asvr_vicuna7b_released.py",
        {
            "model.encoder": own,
            "model.llm": dict(_delete_=True, type="HFCausalLM", arch=LLM, activation_checkpointing="full"),
            "model.reconstruction.0.tokenizer": dict(name=None, codebook_size=64, encoder=own),
            "model.reconstruction.0.head.width": 256,
            "model.reconstruction.0.head.num_heads": 2,
        },
    )
    model = MODELS.build(cfg.model)
    model.load_state_dict(released_tensors(checkpoint, model))
    model.train_only(["projector", "heads", "llm"])
    return model.eval()


def rows(inputs) -> list[dict]:
    items = []
    for b, mask in enumerate(inputs["attention_mask"]):
        picture = Image.fromarray(inputs["images_uint8"][b].permute(1, 2, 0).numpy())
        ids = [IMAGE_TOKEN if token == -200 else token for token in inputs["input_ids"][b, mask].tolist()]
        labels = inputs["labels"][b, mask].tolist()
        items.append(dict(input_ids=ids, labels=labels, images=[picture], image_keys=[str(b)], sample_id=str(b)))
    return items


def collate(model, items: list[dict], **kwargs) -> Batch:
    make = Collate(layout=model.layout, views=model.views(), pad_id=0, **kwargs)
    return make(items)


def losses(model, batches: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of one optimisation step over ``batches``, and the gradients of all trained parameters."""
    model.zero_grad()
    totals = model.count_targets(batches)
    sums = {"text": 0.0, "semantic": 0.0}
    for batch in batches:
        out = model(batch)
        parts = {name: out[name] / totals[name] for name in sums if name in out}
        sum(parts.values()).backward()
        for name, value in parts.items():
            sums[name] = sums[name] + value.detach()
    return sums, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def close(value, expected) -> bool:
    return torch.allclose(torch.as_tensor(value), expected.squeeze(), rtol=RELATIVE, atol=0)


def check(sums, gradients, golden) -> None:
    assert close(sums["text"], golden["loss_text"]) and close(sums["semantic"], golden["loss_vision"])
    assert close(sums["text"] + sums["semantic"], golden["loss"])
    for theirs, ours in GRADIENTS.items():
        assert close(gradients[ours].norm(), golden[f"grad_norm.{theirs}"]), theirs


def test_features_and_codes(model, inputs, golden, checkpoint):
    pixels = (inputs["images_uint8"].float() / 255 - 0.5) / 0.5
    features = model.encode(pixels)

    def distance(own, theirs):
        return (own - theirs).norm() / theirs.norm()

    assert distance(features[:, ::27], golden["encoder_features"]) < RELATIVE
    assert distance(model.projector(features)[:, ::27], golden["projected_features"]) < RELATIVE
    (target,) = model.targets
    codes = target.tokenizer.encode(pixels)
    assert torch.equal(codes, golden["semantic_codes"].long())
    assert distance(target.tokenizer.embed(codes).sum(2)[:, ::27], golden["semantic_features"]) < RELATIVE
    for branch in ("semantic", "appearance"):
        _, tokenizer = import_dualtoken(checkpoint, branch, prefix=RQVAE, name="siglip-384", num_heads=HEADS)
        assert torch.equal(tokenizer.encode(pixels), golden[f"{branch}_codes"].long())


@pytest.mark.parametrize("side", ["right", "left"])
def test_losses_and_gradients(side, model, inputs, golden):
    batch = collate(model, rows(inputs), padding_side=side)
    assert batch.left_padded == (side == "left") and not batch.attention_mask_BT.all()
    check(*losses(model, [batch]), golden)


def test_packed_rows(model, inputs, golden):
    """Both samples in one row; then each in a row of its own."""
    use_attention(model, "sdpa", None)
    check(*losses(model, [collate(model, rows(inputs), packed=True)]), golden)
    check(*losses(model, [collate(model, [row], packed=True) for row in rows(inputs)]), golden)


def test_rows_in_accumulated_micro_batches(model, inputs, golden):
    check(*losses(model, [collate(model, [row]) for row in rows(inputs)]), golden)


def test_a_row_without_its_image_gives_no_visual_loss_and_changes_no_others(model, inputs):
    first, second = rows(inputs)
    ids = [t for t in second["input_ids"] if t != IMAGE_TOKEN]
    labels = [label for t, label in zip(second["input_ids"], second["labels"], strict=True) if t != IMAGE_TOKEN]
    blind = dict(input_ids=ids, labels=labels, images=[], image_keys=[], sample_id="1")
    with torch.no_grad():
        alone, both, without = (model(collate(model, items)) for items in ([first], [first, second], [first, blind]))
    assert torch.allclose(without["semantic"], alone["semantic"], rtol=1e-6)
    assert without["semantic"] < 0.6 * both["semantic"]  # summed over positions: the second row's part is gone


def test_a_released_folder_is_imported_whole(checkpoint, model):
    config, imported = import_released(checkpoint, HEADS)
    assert config["reconstruction"][0]["shift"] == 0 and config["encoder"]["arch"] == TOWER
    own, same = model.state_dict(), imported.state_dict()
    assert own.keys() == same.keys() and all(torch.equal(own[key], same[key]) for key in own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"missing: llm.model.model.norm.weight \(1 in all\)"),
        (lambda w: w.update(extra=torch.zeros(2)), r"unexpected: extra \(1 in all\)"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(5)}), r"misshaped: model.norm.weight \(5,\), needed as"),
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"missing: .*layers.1.mlp.up_proj"),
    ],
)
def test_keys_that_do_not_fit_are_listed(change, message, tmp_path, checkpoint):
    weights = {key: checkpoint[key] for key in checkpoint.keys()}
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config))
    with pytest.raises(ValueError, match=message):
        import_released(open_checkpoint(tmp_path), HEADS)


@pytest.mark.parametrize(
    "gone",
    [
        r"lm_head\.weight",
        r".*rqtransformer_semantic\.headnorm\.weight",
        r".*rqtransformer_semantic\.heads\.3\.weight",
        r".*rqtransformer_semantic\.head_transformer\.2\..*",
        r".*siglip_model\.vision_model\.encoder\.layers\.0\.mlp\.fc1\.weight",
        r"model\.vision_tower\..*position_embedding\.weight",
        r"model\.vision_tower\..*layers\.5\..*",
        r".*quantizer_semantic\.codebooks\.2\.weight",
    ],
)
def test_a_checkpoint_that_is_not_whole_is_one_line(gone, checkpoint, tmp_path):
    weights = {key: checkpoint[key] for key in checkpoint.keys() if not re.fullmatch(gone, key)}
    assert len(weights) < len(checkpoint.shapes)
    _refused(weights, checkpoint.config, tmp_path, "missing|expected 0, 1|head has 3|depth stated is 7")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight", (729,), "has shape"),
        ("model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight", (728, 32), "no square"),
        (f"{RQVAE}quantizer_semantic.codebooks.0.weight", (), "has shape"),
    ],
)
def test_shapes_that_no_model_has_are_one_line(name, shape, message, checkpoint, tmp_path):
    weights = {key: checkpoint[key] for key in checkpoint.keys()}
    _refused(weights | {name: torch.zeros(shape)}, checkpoint.config, tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type=None), "model_type '': no language model"),
        (dict(model_type="t5"), "model_type 't5': no language model"),
        (dict(model_type=3), "model_type=3, expected str"),
        (dict(hidden_size="big"), "config.json describes no llama"),
        (dict(num_attention_heads=3), "describes no llama|no model can be built"),
        (dict(rope_scaling=dict(rope_type="spiral", factor=2.0)), "rope_type='spiral' is unknown to transformers"),
        (dict(mm_vision_select_feature="cls_patch"), "mm_vision_select_feature='cls_patch', expected 'patch'"),
        (dict(mm_vision_select_layer="last"), "mm_vision_select_layer='last', expected int"),
        (dict(mm_vision_select_layer=-99), "this tower has 27 blocks"),
    ],
)
def test_a_config_that_fits_no_model_is_one_line(change, message, checkpoint, tmp_path):
    weights = {key: checkpoint[key] for key in checkpoint.keys()}
    _refused(weights, checkpoint.config | change, tmp_path, message)


def _refused(weights: dict, config: dict, folder: Path, message: str) -> None:
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        import_released(open_checkpoint(folder), HEADS)
    assert "\n" not in str(error.value)


def test_settings_of_the_configuration_are_kept(checkpoint, tmp_path):
    """Nulls are values; the encoder's layer is the configuration's, the tokenizer's always the released one."""
    (tmp_path / "model.safetensors").symlink_to(GOLDEN / "model.safetensors")
    mistral = dict(model_type="asvr_mistral", sliding_window=None, num_key_value_heads=4)
    changes = dict(mistral, mm_vision_select_layer=-3, mm_vision_tower=None)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config | changes))
    config, model, _ = plan(open_checkpoint(tmp_path), HEADS)
    assert model.llm.model.config.sliding_window is None
    assert config["encoder"]["layer"] == -3 and config["reconstruction"][0]["tokenizer"]["encoder"]["layer"] == -2
    assert model.encoder.transform.size == (384, 384)  # as the only published tower with 27 x 27 patches


def test_heads_that_stand_in_no_tensor_are_asked_for(checkpoint):
    with pytest.raises(ValueError, match="width 32 is of no published size.*--heads"):
        import_released(checkpoint)
    for wrong in (0, -4, 5):
        with pytest.raises(ValueError, match=f"--heads {wrong}: expected a divisor of the tower's width 32"):
            import_released(checkpoint, wrong)


def test_files_that_are_no_checkpoints_are_told(tmp_path):
    whole = (GOLDEN / "outputs.safetensors").read_bytes()
    cases = {
        "empty.safetensors": (b"", "is empty"),
        "cut.safetensors": (whole[: len(whole) // 2], "damaged, cut short"),
        "noise.pt": (b"noise" * 99, "damaged, cut short or no checkpoint"),
        "text.txt": (b"text", "expected .safetensors or one of"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            open_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        open_checkpoint(tmp_path / "none.pt")


class Code:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_pickle_that_wants_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save(dict(state_dict=dict(a=torch.zeros(2)), args=Code()), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors and plain values .print., which could run") as error:
        open_checkpoint(tmp_path / "a.pt")
    assert "\x1b" not in str(error.value)
    assert "never" not in capsys.readouterr().out


def test_split_and_wrapped_files(tmp_path):
    (tmp_path / "split").mkdir()
    parts = {"a": torch.ones(2), "b": torch.zeros(3)}
    for key, value in parts.items():
        torch.save({key: value}, tmp_path / "split" / f"{key}.bin")
    index = dict(weight_map={key: f"{key}.bin" for key in parts})
    (tmp_path / "split" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    opened = open_checkpoint(tmp_path / "split")
    assert {key: opened[key].tolist() for key in opened.keys()} == {"a": [1, 1], "b": [0, 0, 0]}
    Path(tmp_path / "split" / "b.bin").unlink()
    with pytest.raises(ValueError, match="names 1 files that are missing, first b.bin"):
        open_checkpoint(tmp_path / "split")
    torch.save(dict(epoch=3, state_dict=parts, optimizer={}), tmp_path / "wrapped.pt")
    wrapped = open_checkpoint(tmp_path / "wrapped.pt")
    assert wrapped.wrapper == "state_dict" and wrapped.shapes == {"a": (2,), "b": (3,)}
    both = dict(model={"a": torch.zeros(2)}, ema=parts | {"decay": 0.9, 7: torch.zeros(1)})
    torch.save(both, tmp_path / "both.pt")
    ema = open_checkpoint(tmp_path / "both.pt")  # LlamaGen's order
    assert ema.wrapper == "ema" and ema.shapes.keys() == parts.keys() and ema.left_out == ["decay", "7"]
    for name in (5, "../wrapped.pt", str(tmp_path / "wrapped.pt")):
        index = dict(weight_map=dict(a=name))
        (tmp_path / "split" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="names .*: expected files of this folder"):
            open_checkpoint(tmp_path / "split")
