"""Exported folders give plain transformers the ids, the pixels and the answers of this library."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import chat
from PIL import Image
from run_helpers import ROOT
from safetensors.torch import load_file
from test_export import CASES, LLM, TOWER, legacy, tiny
from tokenizer_layouts import LAYOUTS
from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import asvr
from asvr.data.text_tokenizer import HFTokenizer, TextTokenizer
from asvr.engine.run import run
from asvr.interchange.convert import export
from asvr.interchange.export import build_processor, export_llava
from asvr.recipe.config import load_config

VICUNA = [f"vicuna, {files}, legacy {legacy}" for files in ("model", "json") for legacy in ("true", "false", "absent")]


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def llama(tmp_path: Path, vocab_size: int, **changes) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=vocab_size, **LLM, bos_token_id=1, eos_token_id=2, **changes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


# From a published folder to an export


def train(layout: str, root: Path) -> tuple[Path, Path]:
    """Two steps with a tiny Vicuna: the folder of tokenizer and LLM, and the work dir."""
    folder, tower = root / "vicuna", root / "tower"
    LAYOUTS[layout](folder)
    llama(folder, len(HFTokenizer(name=str(folder))) + 2)
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(tower)
    options = {}
    turns = dict(pretrain=["<image>", "a house"], finetune=["<image>\nwhat is it?", "a house", "which?", "the red one"])
    for stage, texts in turns.items():
        rows = [dict(image=f"{i}.png", conversations=chat(*texts)) for i in range(2)]
        (root / f"{stage}.json").write_text(json.dumps(rows))
        data = {"train.ann_file": str(root / f"{stage}.json"), "train.image_folder": str(root), "max_length": 256}
        data |= dict(num_workers=0, micro_batch=2, global_batch=2)
        options |= {f"stages.{stage}.data.{key}": value for key, value in data.items()}
    for i in range(2):
        Image.fromarray(noise(20 + 9 * i, 30)).save(root / f"{i}.png")
    options |= {
        "text_tokenizer.name": str(folder),
        "model.llm.name": str(folder),
        "model.llm.arch": None,
        "model.encoder.name": str(tower),
        "model.encoder.arch": None,
        "stages.pretrain.schedule": dict(epochs=1),
        "stages.finetune.schedule": dict(epochs=2),
        "runtime.device": "cpu",
    }
    work_dir = root / "run"
    run(load_config(ROOT / "configs/llava_vicuna7b.py", options), work_dir)
    return folder, work_dir


@pytest.mark.parametrize("layout", VICUNA)
def test_a_vicuna_goes_from_its_folder_to_an_export(layout, tmp_path, quick):
    folder, work_dir = train(layout, tmp_path)
    trained = HFTokenizer(name=str(folder))
    image, question = Image.fromarray(noise(31, 50)), "what color is the house?"
    found = asvr.load(work_dir, device="cpu")
    assert found.text_tokenizer.fingerprint() == trained.fingerprint()
    answer = found.chat(image, question, max_new_tokens=8)
    again = asvr.load(found.save_pretrained(tmp_path / "saved"), device="cpu")
    assert again.text_tokenizer.fingerprint() == trained.fingerprint()
    assert again.chat(image, question, max_new_tokens=8) == answer
    told = export(
        work_dir,
        tmp_path / "llava",
        format="llava",
        stage=None,
        image_aspect=None,
        template=None,
        trust_custom_imports=False,
    )
    assert "of transformers 4.53 or newer" in told and "transparency" in told
    processor = AutoProcessor.from_pretrained(tmp_path / "llava", backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
    content = [dict(type="image", image=image), dict(type="text", text=question)]
    inputs = processor.apply_chat_template(
        [dict(role="user", content=content)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    batch = found.batch([dict(images=[image], messages=[{"from": "human", "value": question}])])
    image_id = model.config.image_token_index
    ours = [image_id if token < 0 else token for token in batch.input_ids_BT[0].tolist()]
    assert inputs["input_ids"][0].tolist() == ours
    assert torch.equal(inputs["pixel_values"], batch.pixels["encoder"])
    written = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    in_weights = asvr.load(work_dir, device="cpu", precision="float32")  # as transformers computes
    answer = in_weights.chat(image, question, max_new_tokens=8)
    assert processor.tokenizer.decode(written, skip_special_tokens=True).strip() == answer
    assert "The model was trained under autocast to bfloat16." in (tmp_path / "llava/README.md").read_text()


def test_a_work_dir_whose_tokenizer_was_saved_without_a_setting_loads(tmp_path, quick):
    """transformers saves no ``legacy``, and older versions of this library wrote what transformers writes."""
    folder, work_dir = train("vicuna, model, legacy true", tmp_path)
    trained = HFTokenizer(name=str(folder))
    saved = work_dir / "text_tokenizer"
    for file in saved.iterdir():
        file.unlink()
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    assert HFTokenizer(name=str(saved)).fingerprint() != trained.fingerprint(), "transformers keeps it now"
    assert asvr.load(work_dir, device="cpu").text_tokenizer.fingerprint() == trained.fingerprint()
    LAYOUTS["vicuna, model, legacy false"](folder)
    with pytest.raises(ValueError, match="neither this text tokenizer nor the one that the config names") as error:
        asvr.load(work_dir, device="cpu")
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_is_not_read_back_ends_a_run_before_it_trains(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(TextTokenizer, "save_pretrained", lambda self, folder: self.hf.save_pretrained(folder))
    with pytest.raises(ValueError, match="cannot be saved: its files are read back as another one"):
        train("vicuna, model, legacy true", tmp_path)
    assert not (tmp_path / "run").exists()


# The exported folder


def test_prompts_of_several_lengths_are_answered_as_one_by_one(tmp_path):
    source = tiny(*CASES[0])
    folder = export_llava(source, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    assert processor.tokenizer.padding_side == "left"
    images = [Image.fromarray(noise(20 + 7 * i, 40, seed=i)) for i in range(8)]
    questions = ["what color is the " + "small red house on the hill, " * i + "dog?" for i in range(8)]
    prompts = [
        processor.apply_chat_template(
            [dict(role="user", content=[dict(type="image"), dict(type="text", text=question)])],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    answers = [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in written]
    ours = [source.chat(*pair, max_new_tokens=8) for pair in zip(images, questions, strict=True)]
    assert answers == ours and len(set(ours)) > 1


SIZES = [(28, 28), (31, 30), (30, 31), (1, 5), (57, 57), (200, 33), (640, 427)]


@pytest.mark.parametrize("tower", ["siglip_vision_model", "clip_vision_model"])
@pytest.mark.parametrize("aspect", ["square", "pad", "resize"])
def test_pixels_are_those_of_training(tower, aspect, tmp_path):
    source = tiny(tower, *CASES[0][1:])
    source.image_aspect = aspect
    processor = AutoProcessor.from_pretrained(export_llava(source, tmp_path / "out"), backend="pil")
    for size in SIZES:
        image = Image.fromarray(noise(*size))
        ours = source.model.encoder.transform(image, aspect)
        theirs = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, theirs), size


def test_images_stay_where_a_prompt_has_them():
    source = tiny(*CASES[0])
    processor, _ = build_processor(source)

    def prompt(*parts: str) -> str:
        content = [dict(type="image") if part == "<image>" else dict(type="text", text=part) for part in parts]
        return processor.apply_chat_template([dict(role="user", content=content)], add_generation_prompt=True)

    assert "USER: first <image> then <image> same? ASSISTANT:" in prompt(
        "first ", "<image>", " then ", "<image>", " same?"
    )
    assert "USER: <image> and <image> ASSISTANT:" in prompt("<image>", " and ", "<image>")
    assert "USER: <image>\n<image>\nsame? ASSISTANT:" in prompt("<image>", "<image>", "same?")
    # As in training, the only image of a question moves to its front.
    assert "USER: <image>\nwhat is it? ASSISTANT:" in prompt("what is it? ", "<image>")


def test_a_tokenizer_that_takes_spaces_away_is_refused(tmp_path):
    """Nothing that a chat template writes gives the space in front of ``</s>`` back."""
    backend = Tokenizer.from_str(legacy().hf.backend_tokenizer.to_str())
    end = AddedToken("</s>", lstrip=True, special=True)
    backend.add_special_tokens([end])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end, unk_token="<unk>")
    source = tiny("clip_vision_model", "llama", "mistral", lambda: TextTokenizer(hf))
    with pytest.raises(ValueError, match="would read .* cannot be exported together"):
        export_llava(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rope_type", ["default", "llama3"])
def test_older_versions_of_transformers_find_everything_under_their_names(rope_type, tmp_path):
    """tests/interchange/test_export_readers.py reads folders with an old version. What it would read wrongly stands in
    the folder twice."""
    rope = dict(rope_type=rope_type, rope_theta=500000.0)
    if rope_type == "llama3":
        rope |= dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    for tied in (False, True):
        arch = dict(LLM, model_type="llama", vocab_size=len(legacy()) + 2, rope_parameters=rope)
        llm = dict(type="HFCausalLM", arch=dict(arch, tie_word_embeddings=tied))
        source = tiny(*CASES[3], dict(llm=llm))
        folder = export_llava(source, tmp_path / f"out{tied}")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        assert text["rope_theta"] == 500000.0 and text["rope_parameters"] == rope
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        assert text.get("rope_scaling") == (None if rope_type == "default" else scaling)
        keys = load_file(folder / "model.safetensors").keys()
        prefixes = ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.")
        assert all(key.startswith(prefixes) for key in keys)
        assert ("language_model.lm_head.weight" in keys) != tied
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "<image>" in tokenizer["additional_special_tokens"] and "extra_special_tokens" not in tokenizer
        assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
        assert "image_mean" in json.loads((folder / "preprocessor_config.json").read_text())
        assert "transformers 4.53 or newer" in (folder / "README.md").read_text()
        model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        read = model.config.text_config.to_dict()["rope_parameters"]
        assert read == rope
