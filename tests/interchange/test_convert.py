"""``tools/convert.py``: what a checkpoint is, in, and out."""

import json
import re
import runpy
import subprocess
import sys

import pytest
import torch
from data_helpers import sentencepiece_like
from run_helpers import ROOT
from safetensors.torch import load_file, save_file
from test_released import GOLDEN, LLM, TOWER
from transformers import CLIPVisionConfig, CLIPVisionModel

import asvr
from asvr.commands.cli import run_tool
from asvr.interchange.llava import TOWER as LLAVA_TOWER


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run the tool in this process; return its exit code's text, or None, and what it printed."""

    def run(*arguments) -> tuple[str | None, str]:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        main = runpy.run_path(str(ROOT / "tools" / "convert.py"))["main"]
        try:
            run_tool(main)
        except SystemExit as end:
            return str(end.code), capsys.readouterr().out
        return None, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model.safetensors")


@pytest.fixture(scope="module")
def released(weights, tmp_path_factory):
    """A released checkpoint with a tokenizer beside it, wide enough for it."""
    folder = tmp_path_factory.mktemp("released")
    tokenizer = sentencepiece_like("always")
    weights = dict(weights)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = torch.cat([weights[key], weights[key]])[: len(tokenizer)]
        assert len(weights[key]) == len(tokenizer)
    save_file(weights, folder / "model.safetensors")
    config = dict(LLM, model_type="asvr_llama", mm_vision_tower="siglip-so400m-patch14-384")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return folder


def test_show_tells_what_it_is(tool, released, weights, tmp_path):
    error, text = tool("show", released)
    assert error is None and "a model of the released ASVR code (asvr)" in text
    assert "quantizer_semantic: 8 codebook(s) of 64 codes of width 32" in text and "dtypes: bfloat16" in text
    assert re.search(r" 4 .* projector +-> heads\.semantic\.input\n", text + "\n") and "unknown" not in text
    assert re.search(r"text_model.* ignored: SigLIP's text side", text)
    save_file(dict(other=torch.zeros(2)), tmp_path / "other.safetensors")
    error, text = tool("show", tmp_path / "other.safetensors")
    assert "of no kind that is known here (first: other)" in error and not text


def test_a_released_model_comes_in_and_answers(tool, released, tmp_path):
    error, text = tool("import", released, tmp_path / "out", "--heads", 4)
    assert error is None and "a model of the released ASVR code" in text
    found = asvr.load(tmp_path / "out", device="cpu")
    assert found.model.encoder.model.config.num_hidden_layers == TOWER["num_hidden_layers"]
    assert isinstance(found.chat(None, "what color is the car?", max_new_tokens=3), str)
    assert found.config["reconstruction"][0]["shift"] == 0


def test_what_deepspeed_saved(tool, released, weights, tmp_path):
    """ZeRO stage 2 leaves all weights in one file of the step's folder; stage 3 scatters them."""
    for step in (9, 10):
        (tmp_path / f"global_step{step}").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((released / name).read_bytes())
    state = dict(
        module=load_file(released / "model.safetensors"), ds_version="0.12.3", param_shapes=[{"w": torch.Size([2])}]
    )
    torch.save(state, tmp_path / "global_step10" / "mp_rank_00_model_states.pt")
    error, text = tool("import", tmp_path, tmp_path / "out", "--heads", 4)
    assert error is None and isinstance(
        asvr.load(tmp_path / "out", device="cpu").chat(None, "?", max_new_tokens=1), str
    )
    (tmp_path / "latest").write_text("global_step9\n")
    for rank in range(2):
        torch.save(state, tmp_path / "global_step9" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    error, _ = tool("import", tmp_path, tmp_path / "out2", "--heads", 4)
    assert "scattered over 2 files" in error and "zero_to_fp32.py" in error and not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 cut short", "damaged"),
        (b"hello", "damaged, cut short or no checkpoint"),
        (None, "there is no such file"),
    ],
)
def test_a_bad_source_is_one_line_and_leaves_nothing(content, message, tool, tmp_path):
    if content is not None:
        (tmp_path / "x.pt").write_bytes(content)
    error, _ = tool("import", tmp_path / "x.pt", tmp_path / "out")
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_damaged_descriptions_are_one_line(tool, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    error, _ = tool("show", tmp_path)
    assert "model.safetensors.index.json: expected a `weight_map`" in error
    (tmp_path / "model.safetensors.index.json").write_text("{bad")
    error, _ = tool("show", tmp_path)
    assert "model.safetensors.index.json: not a JSON file" in error
    save_file(dict(other=torch.zeros(2)), tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text("{bad")
    error, _ = tool("show", tmp_path / "other.safetensors")
    assert "config.json: not a JSON file" in error and "\n" not in error


def test_another_vocabulary_is_refused(tool, released, tmp_path):
    """A tokenizer with more entries than the LLM has embeddings would ask for rows that are not there."""
    weights = load_file(released / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = weights[key][:100].clone()
    folder = tmp_path / "small"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((released / name).read_bytes())
    error, _ = tool("import", folder, tmp_path / "out", "--heads", 4)
    assert "100 embeddings" in error and "do not belong together" in error and not (tmp_path / "out").exists()


def test_export_of_a_run(tool, tiny_run, tmp_path):
    error, _ = tool("export", tiny_run, tmp_path / "out")
    assert "cannot be a LLaVA folder: its encoder is TimmEncoder" in error and not (tmp_path / "out").exists()
    error, text = tool("export", tiny_run, tmp_path / "out", "--format", "asvr")
    assert error is None and "asvr.load reads it" in text
    assert "(own) is not imported by this tool: asvr.load" in tool("show", tmp_path / "out")[1]
    assert asvr.load(tmp_path / "out", device="cpu").chat(None, "is there a circle?", max_new_tokens=2) is not None
    error, _ = tool("export", tiny_run, tmp_path / "out", "--format", "asvr")
    assert "exists: give a new folder" in error


def test_a_llava_checkpoint_gives_projector_and_llm(tool, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    tower = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **tower)).save_pretrained(tmp_path / "org" / "clip")
    folder = tmp_path / "llava"
    folder.mkdir()
    kept = {k: v for k, v in weights.items() if re.match(r"model\.(layers|norm|embed|mm_projector)|lm_head", k)}
    parts = [dict(list(kept.items())[::2]), dict(list(kept.items())[1::2])]
    for i, part in enumerate(parts):
        torch.save(part, folder / f"pytorch_model-{i}.bin")
    index = {key: f"pytorch_model-{i}.bin" for i, part in enumerate(parts) for key in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(dict(weight_map=index)))
    config = dict(LLM, model_type="llava_llama", mm_vision_tower="org/clip", mm_projector_type="mlp2x_gelu")
    (folder / "config.json").write_text(json.dumps(config))
    error, text = tool("import", folder, tmp_path / "out")
    assert error is None and "a LLaVA-1.5 model" in text and "without a text tokenizer" in text
    found = asvr.load(tmp_path / "out", device="cpu")
    assert torch.equal(found.model.projector.mlp[2].weight, weights["model.mm_projector.2.weight"].float())
    assert torch.equal(found.model.llm.lm_head.weight, weights["lm_head.weight"].float())
    with pytest.raises(ValueError, match="no text tokenizer"):
        found.chat(None, "hello?")
    for change, message in (
        (dict(mm_vision_select_feature="cls_patch"), "mm_vision_select_feature='cls_patch'"),
        (dict(unfreeze_mm_vision_tower=True), "its vision tower was trained"),
        (dict(mm_vision_tower=None), "names no mm_vision_tower: give it with --encoder"),
        (dict(image_aspect_ratio="anyres"), "image_aspect 'anyres': expected one of square, pad, resize"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        error, _ = tool("import", folder, tmp_path / "other")
        assert message in error and "\n" not in error and not (tmp_path / "other").exists()
    own = CLIPVisionModel.from_pretrained(tmp_path / "org" / "clip").state_dict()
    inside = {f"{LLAVA_TOWER}{key}": value.bfloat16() for key, value in own.items()}
    for trained in (False, True):
        if trained:
            inside[next(key for key in inside if key.endswith("fc1.weight"))][0] += 1
        save_file(inside, folder / "tower.safetensors")
        save_file(kept, folder / "model.safetensors")
        parts = dict.fromkeys(kept, "model.safetensors") | dict.fromkeys(inside, "tower.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=parts)))
        (folder / "config.json").write_text(json.dumps(config | dict(image_aspect_ratio="pad")))
        error, _ = tool("import", folder, tmp_path / f"inside-{trained}")
        if trained:
            assert "its vision tower differs from org/clip" in error and "--encoder" in error
        else:
            assert error is None
            assert asvr.load(tmp_path / "inside-False", device="cpu").image_aspect == "pad"
    (folder / "config.json").write_text(json.dumps(config | dict(mm_projector_type="linear")))
    error, _ = tool("import", folder, tmp_path / "linear")
    assert "mm_projector_type 'linear'" in error


def test_options_that_fit_nothing_are_told(tool, released, tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    for options, message in (
        (("--heads", 0), "--heads 0: expected a divisor"),
        (("--heads", 4, "--image-aspect", "foo"), "image_aspect 'foo': expected one of square, pad, resize"),
        (("--heads", 4, "--template", "vicuna"), "template 'vicuna': no such template; did you mean 'vicuna_v1'"),
        (("--heads", 4, "--text-tokenizer", tmp_path), "no text tokenizer is in it"),
    ):
        error, _ = tool("import", released, tmp_path / "out", *options)
        assert message in error and "\n" not in error and not (tmp_path / "out").exists()
    error, _ = tool("import", released, tmp_path / "file" / "out", "--heads", 4)
    assert "cannot be made" in error
    error, _ = tool("export", tiny_run, tmp_path / "out", "--template", "foo", "--format", "asvr")
    assert "template 'foo'" in error
    assert tool("export", tiny_run, tmp_path / "own", "--format", "asvr")[0] is None
    error, _ = tool("export", tmp_path / "own", tmp_path / "out", "--format", "asvr", "--stage", "finetune")
    assert "a saved model has no stages" in error and not (tmp_path / "out").exists()


def test_nothing_but_the_result_is_printed(released, tmp_path):
    """transformers would warn of a model type that it does not know."""
    command = [sys.executable, "tools/convert.py", "import", released, tmp_path / "out", "--heads", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "asvr_llama" not in done.stderr and "instantiate" not in done.stderr, done.stderr
