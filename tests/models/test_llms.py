import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from asvr.data.batch import Segments
from asvr.models.llms import HFCausalLM

SIZES = dict(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)
ARCHS = {
    "llama": dict(model_type="llama", num_key_value_heads=4, **SIZES),
    "mistral": dict(model_type="mistral", num_key_value_heads=2, head_dim=4, sliding_window=None, **SIZES),
    "qwen2": dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True, **SIZES),
}


def save(kind, folder, **changes):
    torch.manual_seed(0)
    arch = dict(ARCHS[kind], **changes)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch.pop("model_type"), **arch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    return model


def ids(rows=2, length=7):
    return torch.randint(3, 48, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ARCHS)
def test_folders_load_and_give_the_models_own_states(kind, tmp_path):
    model = save(kind, tmp_path)
    llm = HFCausalLM(name=str(tmp_path), vocab_size=48).eval()
    assert llm.source == str(tmp_path)
    assert (llm.hidden_size, llm.vocab_size, llm.num_layers) == (16, 48, 3)
    embeds_BTH = llm.embed(ids())
    with torch.no_grad():
        out = model(input_ids=ids(), output_hidden_states=True)
        hidden = llm.hidden(embeds_BTH, {-1, 0, 1, 2})
        assert set(hidden) == {-1, 0, 1, 2}
        for tap in (0, 1, 2):
            assert torch.allclose(hidden[tap], out.hidden_states[tap], atol=1e-5)
        # -1 is what the LM head reads.
        assert torch.allclose(llm.lm_head(hidden[-1]), out.logits, atol=1e-5)
        assert torch.equal(hidden[0], embeds_BTH)


def test_only_the_last_state_is_kept_when_only_it_is_asked_for():
    llm = HFCausalLM(arch=ARCHS["llama"])
    assert set(llm.hidden(llm.embed(ids()), {-1})) == {-1}


@pytest.mark.parametrize("kind", ARCHS)
def test_padding_on_the_right_changes_no_real_state(kind):
    torch.manual_seed(0)
    llm = HFCausalLM(arch=ARCHS[kind]).eval()
    embeds_BTH = llm.embed(ids())
    padded_BTH = torch.cat([embeds_BTH, 50 * torch.randn(2, 4, 16)], dim=1)
    with torch.no_grad():
        short, long = llm.hidden(embeds_BTH, {-1, 1}), llm.hidden(padded_BTH, {-1, 1})
    for tap in (-1, 1):
        assert torch.allclose(short[tap], long[tap][:, :7], atol=1e-5)


def test_tied_embeddings_stay_tied_and_need_no_head_in_the_file(tmp_path):
    save("qwen2", tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    llm = HFCausalLM(name=str(tmp_path))
    assert llm.lm_head.weight is llm.model.get_input_embeddings().weight
    save("llama", tmp_path / "untied")
    untied = HFCausalLM(name=str(tmp_path / "untied"))
    assert not torch.equal(untied.lm_head.weight, untied.model.get_input_embeddings().weight)


def test_a_missing_weight_is_an_error_that_names_it(tmp_path):
    save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    for key in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        weights = load_file(file)
        kept = weights.pop(key)
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"missing.*{key}"):
            HFCausalLM(name=str(tmp_path))
        save_file(weights | {key: kept}, file, metadata={"format": "pt"})
    HFCausalLM(name=str(tmp_path))


def test_rotary_frequencies_of_old_files_are_ignored(tmp_path):
    save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(3)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    assert HFCausalLM(name=str(tmp_path)).source == str(tmp_path)


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tmp_path):
    save("llama", tmp_path)
    with pytest.raises(ValueError, match=r"48 embeddings.*49.*text_tokenizer\.name"):
        HFCausalLM(name=str(tmp_path), vocab_size=49)
    assert HFCausalLM(name=str(tmp_path), vocab_size=40).vocab_size == 48


def test_a_model_from_scratch_takes_the_tokenizers_size():
    llm = HFCausalLM(arch=ARCHS["llama"], vocab_size=61)
    assert llm.vocab_size == 61 and llm.lm_head.out_features == 61 and llm.source is None


def test_the_folders_configuration_wins_with_a_warning(tmp_path, caplog):
    save("llama", tmp_path)
    with caplog.at_level(logging.WARNING, logger="asvr"):
        llm = HFCausalLM(name=str(tmp_path), arch=dict(ARCHS["llama"], num_hidden_layers=5))
    assert llm.num_layers == 3
    (record,) = [r for r in caplog.records if r.name == "asvr"]
    assert "num_hidden_layers=3 (config: 5)" in record.getMessage()


@pytest.mark.parametrize(
    ("arch", "field"),
    [
        (dict(model_type="gemma", head_dim=4, num_key_value_heads=4, **SIZES), "final_logit_softcapping"),
        (dict(model_type="llama", num_key_value_heads=4, **SIZES), "logits_scaling"),
        (dict(model_type="falcon_h1", num_key_value_heads=4, **SIZES), "lm_head_multiplier"),
    ],
)
def test_a_change_of_logits_that_is_not_known_is_refused(arch, field):
    with pytest.raises(ValueError, match=rf"LLM {arch['model_type']}: `{field}` is not supported by the text loss"):
        HFCausalLM(arch=dict(arch, **{field: 0.25}))
    with torch.device("meta"):
        assert HFCausalLM(arch=dict(arch, **{field: 1.0})).logit_changes == {}


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("segments", [None, [3, 4]])
def test_activation_checkpointing_changes_no_gradient_and_keeps_less(mode, segments):
    gradients, kept = [], []
    for activation_checkpointing in ("none", mode):
        torch.manual_seed(0)
        llm = HFCausalLM(arch=ARCHS["llama"], activation_checkpointing=activation_checkpointing).train()
        llm.model.set_attn_implementation("asvr_sdpa")
        bytes_kept = 0

        def pack(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.numel()
            return tensor

        packed = None if segments is None else Segments.of(segments)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = llm.hidden(llm.embed(ids(1)), {-1}, segments=packed)[-1]
        llm.lm_head(hidden).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in llm.parameters()])
        kept.append(bytes_kept)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="llm.activation_checkpointing='some': expected one of none, selective, full"):
        HFCausalLM(arch=ARCHS["llama"], activation_checkpointing="some")


def test_generation_continues_embedded_prompts_greedily():
    torch.manual_seed(0)
    llm = HFCausalLM(arch=ARCHS["llama"]).eval()
    prompt = ids(1)
    own = llm.generate(llm.embed(prompt), torch.ones(1, 7, dtype=torch.long), max_new_tokens=4, do_sample=False)
    sequence = prompt
    for _ in range(4):
        with torch.no_grad():
            sequence = torch.cat([sequence, llm.model(sequence).logits[:, -1:].argmax(-1)], dim=1)
        if sequence[0, -1] == llm.model.generation_config.eos_token_id:
            break
    assert torch.equal(own, sequence[:, 7:])


def test_meta_device_without_weights():
    with torch.device("meta"):
        llm = HFCausalLM(name="nowhere/at-all", arch=ARCHS["mistral"], load_weights=False, dtype="bfloat16")
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in llm.parameters())


@pytest.mark.parametrize("kind", ARCHS)
@pytest.mark.parametrize("rope", [None, dict(rope_type="linear", factor=2.0)], ids=["plain", "scaled"])
def test_deferred_weights_are_those_of_the_folder(kind, rope, tmp_path):
    save(kind, tmp_path, **({} if rope is None else dict(rope_parameters=dict(rope, rope_theta=10000.0))))
    at_once = HFCausalLM(name=str(tmp_path))
    before = torch.get_rng_state()
    later = HFCausalLM(name=str(tmp_path), defer=True)
    assert torch.equal(torch.get_rng_state(), before)  # parts that are built after it are those of one process
    assert all(parameter.is_meta for parameter in later.parameters())
    later.materialise(torch.device("cpu"))
    assert later.fingerprint() == at_once.fingerprint() and later.source == str(tmp_path)
    for (name, own), (_, other) in zip(later.named_buffers(), at_once.named_buffers(), strict=True):
        assert torch.equal(own, other), name  # no file holds the frequencies of rotary embeddings
    assert torch.equal(later.hidden(later.embed(ids()))[-1], at_once.hidden(at_once.embed(ids()))[-1])
    tied = later.model.get_input_embeddings().weight is later.lm_head.weight
    assert tied == (kind == "qwen2")


def test_files_with_other_names_are_read_at_once(tmp_path):
    save("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {key.removeprefix("model."): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    later = HFCausalLM(name=str(tmp_path), defer=True)
    assert not later.lm_head.weight.is_meta
    assert later.fingerprint() == HFCausalLM(name=str(tmp_path)).fingerprint()
