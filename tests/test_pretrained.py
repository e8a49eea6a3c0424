"""A model as one folder answers, and computes, as the one that was saved."""

import json
import shutil

import numpy as np
import pytest
import torch
from data_helpers import byte_level
from PIL import Image
from run_helpers import ROOT, TINY
from test_export import tiny

import asvr
from asvr.base.checkpoint_files import open_checkpoint
from asvr.data.easy_vqa import EasyVQA
from asvr.engine.run import run
from asvr.interchange.detect import sizes
from asvr.models.attention import use_attention
from asvr.pretrained import PromptTooLong
from asvr.recipe.config import load_config

pytestmark = pytest.mark.usefixtures("quick")
QUESTIONS = ["what color is the shape?", "is there a circle in the image?", "what shape is in the image?"]


@pytest.fixture(scope="module")
def trained(tiny_run):
    return asvr.load(tiny_run, device="cpu")


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    return trained.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def pictures() -> list:
    return [file for _, file in EasyVQA(split="test", max_images=4).images()]


def test_a_work_dir_answers_as_its_evaluation_did(trained, tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "finetune" / "answers.jsonl").read_text().splitlines()]
    dataset = EasyVQA(split="test", max_images=TINY["evaluation.dataset.max_images"], seed=None)
    prompts = []
    for row in rows:
        record = dataset.record(int(row["id"].rsplit(":", 1)[1]))
        prompts.append(dict(images=[dataset.image(record["image"])[1]], messages=record["conversations"][:1]))
    assert trained.generate(prompts, max_new_tokens=8) == [row["answer"] for row in rows]


def test_token_maps_show_each_visual_token(trained, pictures):
    [found] = trained.token_maps(pictures[0])
    rows, columns = trained.model.encoder.grid
    assert found.name == "semantic" and found.right_RCD.shape == (rows, columns, 2)
    assert found.probability_RCD.shape == (rows, columns, 2)
    [same] = trained.token_maps(Image.open(pictures[0]))
    assert np.array_equal(found.right_RCD, same.right_RCD, equal_nan=True)
    with pytest.raises(ValueError, match="missing.png"):
        trained.token_maps("missing.png")


def test_a_model_without_targets_has_no_token_maps(trained, pictures, monkeypatch):
    monkeypatch.setattr(trained.model, "targets", [])
    with pytest.raises(ValueError, match="no reconstruction target"):
        trained.token_maps(pictures[0])


def test_a_folder_is_the_model_that_was_saved(trained, saved, pictures):
    loaded = asvr.load(saved, device="cpu")
    own, other = trained.model.state_dict(), loaded.model.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert loaded.model.encoder.transform == trained.model.encoder.transform
    assert loaded.text_tokenizer.fingerprint() == trained.text_tokenizer.fingerprint()
    for question in QUESTIONS:
        for images in (None, pictures[0], Image.open(pictures[1]), pictures[:2]):
            assert loaded.chat(images, question, max_new_tokens=6) == trained.chat(images, question, max_new_tokens=6)
    again = loaded.save_pretrained(saved.with_name("again"))
    assert (again / "asvr.json").read_text() == (saved / "asvr.json").read_text()


def test_a_folder_whose_visual_tokens_see_each_other_answers(pictures, tmp_path):
    source = tiny("siglip_vision_model", "llama", "vicuna_v1", byte_level, dict(visual_attention="bidirectional"))
    use_attention(source.model, "sdpa", None)
    again = asvr.load(source.save_pretrained(tmp_path / "model"), device="cpu")
    assert again.chat(pictures[0], QUESTIONS[0], max_new_tokens=5) == source.chat(
        pictures[0], QUESTIONS[0], max_new_tokens=5
    )


def test_it_needs_none_of_the_files_that_it_came_from(saved):
    description = json.loads((saved / "asvr.json").read_text())
    assert "package:" not in json.dumps(description) and "tokenizers/" not in json.dumps(description["model"])
    assert "fit" not in description["model"]["reconstruction"][0]


def test_training_goes_on_from_a_folder(saved, tiny_run, tmp_path):
    changes = {"stages.finetune.init": str(saved), "schedule.steps": 3, "optim.lr": 1e-9}
    cfg = load_config(ROOT / "configs/asvr_mini.py", TINY | changes)
    run(cfg, tmp_path / "on", only="finetune")
    model = asvr.load(tmp_path / "on", device="cpu").model
    before = asvr.load(saved, device="cpu").model
    for name in ("llm", "projector", "heads"):
        own, start = (getattr(m, name).state_dict() for m in (model, before))
        assert all(torch.allclose(own[key], start[key], atol=1e-6) for key in own)
    assert "starts from" in (tmp_path / "on" / "train.log").read_text()
    other = load_config(ROOT / "configs/asvr_mini.py", TINY | changes | {"model.reconstruction.0.fit.iterations": 1})
    with pytest.raises(ValueError, match="the weights of tokenizer.semantic differ from those that the config names"):
        run(other, tmp_path / "other", only="finetune")


def test_a_start_folder_that_was_replaced_is_refused(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    cfg = load_config(ROOT / "configs/asvr_mini.py", TINY | {"stages.finetune.init": str(copy), "schedule.steps": 1})
    run(cfg, tmp_path / "run", only="finetune")
    description = json.loads((copy / "asvr.json").read_text())
    (copy / "asvr.json").write_text(json.dumps(description | dict(image_aspect="pad")))
    with pytest.raises(ValueError, match="trained from weights of .*copy' that have been replaced"):
        run(cfg, tmp_path / "run", only="finetune")


def change(folder, key: str, value) -> None:
    """Set a dotted key of ``asvr.json``."""
    description = json.loads((folder / "asvr.json").read_text())
    *path, last = key.split(".")
    place = description
    for name in path:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    (folder / "asvr.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "asvr.json").write_text("{"), "asvr.json: cannot be read"),
        (lambda f: (f / "asvr.json").write_text('{"format": 99}'), "its format is 99, but this library reads 1"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "model.safetensors: missing or damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing or damaged"),
        (lambda f: (f / "asvr.json").write_text("[1]"), "asvr.json: expected a JSON object, found list"),
        (lambda f: (f / "asvr.json").write_text('{"format": 1}'), "model, template, image_aspect, sha256: missing"),
        (lambda f: change(f, "model.encoder.type", "TimmEncodr"), "model.encoder.type='TimmEncodr': no component"),
        (lambda f: change(f, "model.surprise", 1), "model.surprise: VLM has no such field"),
        (lambda f: change(f, "template", "foo"), "template 'foo': no such template; known: .*vicuna_v1"),
        (lambda f: change(f, "image_aspect", "foo"), "image_aspect 'foo': expected one of square, pad, resize"),
        (lambda f: shutil.rmtree(f), "there is no such folder; expected a folder with asvr.json"),
        (lambda f: (f / "asvr.json").unlink(), "checkpoint of other software.*asvr convert import"),
        (lambda f: [p.unlink() for p in f.iterdir() if p.is_file()], "neither a folder with asvr.json nor a run's"),
    ],
)
def test_what_cannot_be_loaded_is_told(damage, message, saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ValueError, match=message):
        asvr.load(copy)


def test_an_existing_folder_is_not_written_over(trained, saved):
    with pytest.raises(ValueError, match="exists: give a new folder"):
        trained.save_pretrained(saved)
    assert not [p for p in saved.parent.iterdir() if p.name.startswith(".")]


def test_an_unfinished_run_is_refused(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    (copy / "finetune" / "done.json").unlink()
    with pytest.raises(ValueError, match="stage 'finetune' is not finished"):
        asvr.load(copy)
    assert asvr.load(copy, stage="pretrain", device="cpu").model is not None


@pytest.mark.parametrize("key", ["model.encoder", "model.reconstruction.0.head", "model", "template"])
@pytest.mark.parametrize("name", ["subprocess.Popen", "evil", "asvr.evil", "mmengine.Sequential"])
def test_a_folder_cannot_name_anything_but_registered_components(key, name, saved, tmp_path, monkeypatch):
    """MMEngine would import, and call, whatever a dotted `type` names."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    copy = shutil.copytree(saved, tmp_path / "copy")
    change(copy, key, dict(type=name, args=["touch", str(tmp_path / "ran")]))
    with pytest.raises(ValueError, match=rf"type='{name}': no component of this name is registered"):
        asvr.load(copy)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_folder_runs_only_where_that_is_agreed_to(saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    copy = shutil.copytree(saved, tmp_path / "copy")
    change(copy, "custom_imports", dict(imports=["own_module"]))
    with pytest.raises(ValueError, match="own_module.*runs the code there.*trust_custom_imports=True"):
        asvr.load(copy)
    assert not (tmp_path / "ran").exists()
    change(copy, "model.llm.arch.attn_implementation", "someone/kernel")
    with pytest.raises(ValueError, match="llm.arch.attn_implementation='someone/kernel': not allowed"):
        asvr.load(copy, trust_custom_imports=True)
    assert (tmp_path / "ran").exists()
    change(copy, "model.llm.arch.attn_implementation", None)
    assert asvr.load(copy, device="cpu").custom_imports == dict(imports=["own_module"])  # imported by now
    change(copy, "custom_imports", "own_module")
    with pytest.raises(ValueError, match="custom_imports: expected an object"):
        asvr.load(copy)


def test_wrong_arguments_are_told(trained, saved, pictures, tmp_path, caplog):
    (tmp_path / "config.py").write_text("")
    for folder, message in {
        None: "asvr.load.None.: expected a folder's name",
        ROOT / "configs/asvr_mini.py": "is a config: train it",
    }.items():
        with pytest.raises(ValueError, match=message):
            asvr.load(folder)
    with pytest.raises(ValueError, match="device 'foo': expected 'auto', 'cpu'"):
        asvr.load(saved, device="foo")
    with pytest.raises(ValueError, match="a saved model has no stages"):
        asvr.load(saved, stage="pretrain")
    with pytest.raises(ValueError, match="prompt 0: image 5: expected a file's name"):
        trained.chat(5, "what?")
    with pytest.raises(ValueError, match="question 5: expected a text"):
        trained.chat(None, 5)
    long = trained.model.llm.max_positions
    with pytest.raises(ValueError, match=rf"tokens: the LLM has {long} positions; shorten"):
        trained.chat(pictures[0], "what is it? " * long)
    with caplog.at_level("WARNING", logger="asvr"):
        trained.chat(None, "what?", max_new_tokens=long)
    assert "answers end after" in caplog.text
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made, .*file is not a folder"):
        trained.save_pretrained(tmp_path / "file" / "model")


def test_scores_are_losses_of_the_answers(trained, pictures):
    """One by one, in a batch, and against logits written out."""
    answers = ["yes", "blue circle"]
    conversations = [
        dict(images=[picture], messages=[{"from": "human", "value": QUESTIONS[0]}, {"from": "gpt", "value": answer}])
        for picture, answer in zip(pictures[:2], answers, strict=True)
    ]
    together = trained.score(conversations)
    model = trained.model.eval()
    for conversation, (loss, greedy) in zip(conversations, together, strict=True):
        assert trained.score([conversation])[0] == (pytest.approx(loss, rel=1e-5), greedy)
        batch = trained.batch([conversation], answered=True)
        with torch.inference_mode():
            hidden = model.llm.hidden(model.embed(batch)[0])[-1][0, batch.text_source_S]
            logits = model.llm.lm_head(hidden).float()
        expected = torch.nn.functional.cross_entropy(logits, batch.text_target_S)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert greedy == bool((logits.argmax(-1) == batch.text_target_S).all())


def test_a_score_needs_positions_for_the_answer_too(trained, monkeypatch):
    conversation = dict(messages=[{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a blue circle"}])
    length = trained.batch([conversation], answered=True).attention_mask_BT.shape[1]
    monkeypatch.setattr(trained.model.llm, "max_positions", length)
    assert len(trained.score([conversation])) == 1
    monkeypatch.setattr(trained.model.llm, "max_positions", length - 1)
    with pytest.raises(PromptTooLong, match=rf"{length} tokens with its answer: the LLM has {length - 1} positions"):
        trained.score([conversation])


def test_a_part_of_a_run_is_told_apart_from_other_software(tiny_run):
    (step,) = sorted((tiny_run / "blind" / "checkpoints").iterdir())[-1:]
    for folder in (step, tiny_run / "blind"):
        with pytest.raises(ValueError, match=f"is a part of the run {tiny_run}: give that folder"):
            asvr.load(folder)
    with pytest.raises(
        ValueError, match=r"has no stage 'finetun': expected one of \['blind', 'pretrain', 'finetune'\]"
    ):
        asvr.load(tiny_run, stage="finetun")


def test_codebooks_of_an_own_model_are_counted_whole(tiny_run, tmp_path):
    model = asvr.load(tiny_run, device="cpu")
    model.save_pretrained(tmp_path / "saved")
    codes, width = model.model.tokenizers["semantic"].codebook_sizes[0], model.model.encoder.width
    assert f"of {codes} codes of width {width}" in "\n".join(sizes(open_checkpoint(tmp_path / "saved")))
