"""Folders of another kind, given as LLM or vision tower, are told in one line."""

import json
import re
from pathlib import Path

import pytest
from run_helpers import call_tool
from transformers import AutoConfig

from asvr.models.hf import require_causal
from asvr.registry import LLMS

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


def folder_of(tmp_path: Path, config) -> Path:
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


NO_TOWER = r"is not a vision tower \(model_type '{}'\): expected one such as siglip"
KINDS = {
    # kind: config.json, what is told of it as an LLM, and as a vision tower (None: it is or has one)
    "llava": (
        dict(model_type="llava"),
        "is a complete multimodal model .model_type 'llava'.: name the folder of its LLM",
        None,
    ),
    "gemma3": (dict(model_type="gemma3"), "is a complete multimodal model", None),
    "qwen vl": (dict(model_type="qwen2_5_vl"), "is a complete multimodal model", NO_TOWER.format("qwen2_5_vl_vision")),
    "t5": (
        dict(model_type="t5"),
        "is an encoder-decoder .model_type 't5'.: expected a causal LM",
        NO_TOWER.format("t5"),
    ),
    "bart": (dict(model_type="bart"), "is an encoder-decoder", NO_TOWER.format("bart")),
    "bert": (dict(model_type="bert"), "is an encoder .*see later tokens", NO_TOWER.format("bert")),
    "tower": (dict(model_type="clip_vision_model"), "is not an LLM .model_type 'clip_vision_model'", None),
    "both towers": (dict(model_type="siglip"), "is a complete multimodal model", None),
    "llm": (dict(model_type="llama"), None, NO_TOWER.format("llama")),
    "unknown": (dict(model_type="superllm"), "'superllm' is unknown to transformers", "'superllm' is unknown to"),
    "llava software": (dict(model_type="llava_llama"), "with asvr convert import", "with asvr convert import"),
    "no type": (dict(hidden_size=8), "config.json: no `model_type` in it", "config.json: no `model_type` in it"),
    "a list": ("[1]", "config.json: no `model_type` in it", "config.json: no `model_type` in it"),
    "broken": ("{not json", "config.json: not a JSON file", "config.json: not a JSON file"),
    "wrong field": (
        dict(model_type="llama", hidden_size="x"),
        "not a configuration of 'llama'",
        "not a configuration of",
    ),
    "a tokenizer alone": (None, "a folder without config.json", "a folder without config.json"),
}


WRONG = [(kind, part) for kind in KINDS for part in ("llm", "encoder") if KINDS[kind][1 + (part == "encoder")]]


@pytest.mark.parametrize(("kind", "part"), WRONG)
def test_a_folder_of_another_kind_is_told_in_one_line(kind, part, tmp_path):
    config, *told = KINDS[kind]
    message = told[part == "encoder"]
    folder = folder_of(tmp_path, config)
    done = call_tool(
        *("tools/train.py", "configs/llava_vicuna7b.py", "--dry-run", "--cfg-options"), f"model.{part}.name={folder}"
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith("error: ") and str(folder) in lines[-1], done.stderr
    assert "Traceback" not in done.stderr and len(lines[-1]) < 500
    assert re.search(message, lines[-1]), lines[-1]


@pytest.mark.parametrize("arch", [dict(model_type="t5"), dict(model_type="clip_vision_model"), dict(model_type="bert")])
def test_an_arch_of_another_kind_is_told_in_one_line(arch):
    with pytest.raises(ValueError, match="LLM of `arch` is (an encoder|not an LLM)") as error:
        LLMS.build(dict(type="HFCausalLM", arch=arch))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_folder_without_weights_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="its weights cannot be read: ") as error:
        LLMS.build(
            dict(type="HFCausalLM", name=str(folder_of(tmp_path, dict(SIZES, model_type="llama", vocab_size=9))))
        )
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "opt"])
def test_an_llm_is_taken_for_one(model_type):
    require_causal(AutoConfig.for_model(model_type), model_type)
