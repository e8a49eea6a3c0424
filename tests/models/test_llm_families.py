"""LLM families in their real layout: what docs/guides/models.md says of each. Every number is compared with what
transformers' own forward pass of the whole LLM gives."""

import logging

import pytest
import torch
import torch.nn.functional as F
from data_helpers import byte_level
from llm_families import FAMILIES, NO_KERNEL, PACKED, PADDED
from test_export import tiny
from vlm_helpers import SEMANTIC, VOCAB, build, collate, gradients_of, rows

from asvr.engine.optim import AutocastOptimWrapper
from asvr.interchange.export import export_llava
from asvr.models.attention import set_kernel, use_attention
from asvr.models.attention_checks import check_isolation
from asvr.models.llms import HFCausalLM
from asvr.models.recurrence import check_recurrence

pytestmark = pytest.mark.filterwarnings("ignore")


def vlm(family: str, kernel: bool = True, **changes):
    model = build(llm=dict(FAMILIES[family], **changes), train=("projector", "llm"), reconstruction=[])
    if kernel:
        set_kernel(model, "sdpa")
    return model.eval()


def llm(family: str, **changes) -> HFCausalLM:
    torch.manual_seed(0)
    model = HFCausalLM(arch=dict(FAMILIES[family], **changes), vocab_size=VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def ids(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def own_loss(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Text loss and right predictions by the LLM's own forward pass, which makes all logits at once."""
    embeds, _ = model.embed(batch)
    logits = model.llm.model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask_BT.long(), use_cache=False
    ).logits
    logits = logits.float().flatten(0, 1)[batch.text_source_S]
    loss = F.cross_entropy(logits, batch.text_target_S, reduction="sum")
    return loss, (logits.argmax(-1) == batch.text_target_S).sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_loss_and_its_gradient_are_the_llms_own(family):
    model = vlm(family)
    batch = collate(model, rows())
    out = model(batch)
    wanted, right = own_loss(model, batch)
    torch.testing.assert_close(out["text"], wanted, rtol=1e-5, atol=1e-5)
    assert out["correct_text"] == right
    own, other = gradients_of(out["text"], model), gradients_of(wanted, model)
    for name, gradient in other.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-4 * (1 + gradient.abs().max().item()))


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_fall(family):
    model = build(llm=FAMILIES[family], reconstruction=[SEMANTIC])
    set_kernel(model, "sdpa")
    batch = collate(model, rows())
    wrapper = AutocastOptimWrapper(
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2),
        precision="float32",
        clip_grad=None,
    )
    logs = [model.train_step([batch], wrapper) for _ in range(15)]
    assert logs[-1]["text"] < 0.9 * logs[0]["text"] and logs[-1]["semantic"] < logs[0]["semantic"]


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_are_padded_rows(family):
    model = vlm(family)
    check_isolation(model.llm, None)
    padded, packed = (model(collate(model, rows(), packed=packed)) for packed in (False, True))
    torch.testing.assert_close(packed["text"], padded["text"], rtol=1e-5, atol=1e-5)
    own, other = gradients_of(packed["text"], model), gradients_of(padded["text"], model)
    for name, gradient in other.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-4 * (1 + gradient.abs().max().item()))


@pytest.mark.parametrize("family", PADDED)
def test_packed_rows_are_refused(family):
    model = vlm(family)
    with pytest.raises(ValueError, match=f"data.pack: HFCausalLM {PADDED[family][1]}.*: set data.pack=False"):
        check_isolation(model.llm, None)


def generated(model: HFCausalLM, embeds: torch.Tensor, mask: torch.Tensor):
    out = model.generate(
        embeds,
        mask,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, 1), out.sequences


def uncached(model: HFCausalLM, embeds: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Logits in front of each new token, of one row without padding and all at once."""
    with torch.inference_mode():
        whole = torch.cat([embeds, model.embed(sequence[:-1])])[None]
        return model.model(inputs_embeds=whole, use_cache=False).logits[0, len(embeds) - 1 :]


def prompts(model: HFCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, the second behind padding that would show."""
    embeds, mask = model.embed(ids()).detach().clone(), torch.ones(2, 9, dtype=torch.long)
    embeds[1, :3], mask[1, :3] = 5 * torch.randn(3, 32), 0
    return embeds, mask


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "recurrent-gemma"])
def test_generation_with_a_cache_and_padding_is_that_without(family):
    model = llm(family)
    set_kernel(model, "sdpa")
    embeds, mask = prompts(model)
    logits, sequences = generated(model, embeds, mask)
    for row in range(2):
        alone = uncached(model, embeds[row, mask[row].bool()], sequences[row])
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-4 * (1 + alone.abs().max().item()))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_real_state(family):
    model = llm(family)
    set_kernel(model, "sdpa")
    embeds = model.embed(ids())
    noise, mask = 5 * torch.randn(2, 4, 32), torch.ones(2, 13, dtype=torch.bool)
    mask[:, :4] = False
    with torch.no_grad():
        alone = model.hidden(embeds)[-1]
        right = model.hidden(torch.cat([embeds, noise], 1))[-1][:, :9]
        left = model.hidden(torch.cat([noise, embeds], 1), mask_BT=mask)[-1][:, 4:]
    torch.testing.assert_close(right, alone, rtol=1e-4, atol=1e-4)
    if family == "recurrent-gemma":  # transformers' goes through padding: prompts of several lengths are refused
        assert (left - alone).abs().max() > 1e-2
    else:
        torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-4)


def test_a_recurrence_through_padding_is_refused_and_rows_of_one_length_are_not():
    model = llm("recurrent-gemma")
    embeds, mask = prompts(model)
    with pytest.raises(ValueError, match="LLM recurrent_gemma: .*not kept apart from padding.*evaluation.batch_size=1"):
        generated(model, embeds, mask)
    logits, sequences = generated(model, embeds, torch.ones_like(mask))
    for row in range(2):
        alone = uncached(model, embeds[row], sequences[row])
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-4)


def test_a_state_that_is_not_carried_on_is_refused():
    torch.manual_seed(0)
    arch = dict(model_type="rwkv", hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48)
    model = HFCausalLM(arch=arch, vocab_size=VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    with pytest.raises(ValueError, match="LLM rwkv: .*its state is not carried from token to token"):
        check_recurrence(model, padded=False)
    with pytest.raises(ValueError, match=f"data.pack: HFCausalLM {NO_KERNEL}"):
        check_isolation(model, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_are_what_blocks_get_and_give(family):
    model = llm(family)
    gets, gives = {}, {}
    for k, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _, args, k=k: gets.__setitem__(k, args[0]))
        block.register_forward_hook(
            lambda _, args, out, k=k: gives.__setitem__(k + 1, out[0] if isinstance(out, tuple) else out)
        )
    assert len(model.blocks) == model.num_layers
    with torch.no_grad():
        hidden = model.hidden(model.embed(ids()), {-1, *range(model.num_layers + 1)})
        logits = model.model(input_ids=ids()).logits
    assert torch.equal(hidden[0], gets[0])
    for k in range(1, model.num_layers + 1):
        assert torch.equal(hidden[k], gives[k]), k
    changed = model.lm_head(hidden[-1]) * model.logit_changes.get("scale", 1.0)
    if (cap := model.logit_changes.get("softcap")) is not None:
        changed = cap * torch.tanh(changed / cap)
    torch.testing.assert_close(changed, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_same_model_at_once_and_deferred(family, tmp_path):
    model = llm(family)
    model.model.save_pretrained(tmp_path)
    at_once, later = HFCausalLM(name=str(tmp_path)).eval(), HFCausalLM(name=str(tmp_path), defer=True).eval()
    later.materialise(torch.device("cpu"))
    with torch.no_grad():
        wanted = model.hidden(model.embed(ids()))[-1]
        for again in (at_once, later):
            torch.testing.assert_close(again.hidden(again.embed(ids()))[-1], wanted, rtol=0, atol=1e-6)
            assert again.logit_changes == model.logit_changes and again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("family", FAMILIES)
def test_token_maps_have_every_layer_or_say_why_not(family):
    model = llm(family)
    model.model.set_attn_implementation("eager")
    recurrent = model.model._is_stateful or family == "lfm2"
    if recurrent:
        with pytest.raises(ValueError, match=r"of this LLM's \d layers have attention weights"):
            model.attention(model.embed(ids(1)), 5)
    else:
        maps = model.attention(model.embed(ids(1)), 5)
        assert [weights.shape[2:] for weights in maps] == [(4, 9)] * model.num_layers


# What single families are about ------------------------------------------------------------------------------------


def test_caps_of_attention_run_on_transformers_own_eager_path(caplog):
    model = vlm("gemma2", kernel=False)
    assert model.llm.model.config._attn_implementation == "eager"
    with caplog.at_level(logging.INFO, logger="asvr"):
        use_attention(model, "sdpa", None)
    assert model.llm.model.config._attn_implementation == "eager" and not model.llm.own_kernels
    assert "attention of the LLM: transformers' own (eager)" in caplog.text
    # A cap that changes numbers: a path without it would give the same as a cap of a million.
    embeds = 3 * torch.randn(1, 9, 32)
    states = [(low := llm("gemma2", attn_logit_softcapping=cap)).hidden(embeds)[-1].detach() for cap in (0.05, 1e6)]
    assert low.logit_changes == dict(softcap=30.0) and (states[0] - states[1]).abs().max() > 1e-3


def test_sinks_count_in_training():
    model = vlm("gpt-oss")
    batch = collate(model, rows())
    gradients = gradients_of(model(batch)["text"], model)
    sinks = [gradient for name, gradient in gradients.items() if name.endswith("sinks")]
    assert len(sinks) == 2 and all(gradient.abs().max() > 0 for gradient in sinks)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "granite"])
def test_visual_embeddings_go_in_behind_the_scale_of_word_embeddings(family):
    """As image features do in transformers' Gemma3ForConditionalGeneration: words are scaled in their embedding layer.
    Granite scales what goes into its first block, visual embeddings too, as in transformers' Granite vision models."""
    model = vlm(family)
    weight = model.llm.model.get_input_embeddings().weight
    words = model.llm.embed(ids()) / weight[ids()]
    first = model.llm.hidden(torch.ones(1, 3, 32), {0})[0]
    scale, embedding = (12.0, 1.0) if family == "granite" else (1.0, 32**0.5)
    torch.testing.assert_close(words, torch.full_like(words, embedding), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, torch.full_like(first, scale))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", dict(softcap=30.0)),
        ("recurrent-gemma", dict(softcap=3.0)),
        ("granite", dict(scale=1 / 8)),
        ("cohere", dict(scale=0.0625)),
        ("gemma3", {}),
        ("llama3", {}),
    ],
)
def test_an_llm_says_what_it_does_to_its_logits(family, changes):
    assert llm(family).logit_changes == changes


def test_a_capped_gemma3_is_capped():
    model = llm("gemma3", final_logit_softcapping=2.0)
    assert model.logit_changes == dict(softcap=2.0)


NOT_EXPORTED = ["granite", "cohere", "cohere2", "gemma4", *PADDED]


@pytest.mark.parametrize("family", [*NOT_EXPORTED, "gemma3"])
def test_an_export_without_a_counterpart_is_refused(family, tmp_path):
    text_tokenizer = byte_level()
    arch = dict(FAMILIES[family], vocab_size=len(text_tokenizer) + 2)
    message = rf"its LLM is HFCausalLM \({arch['model_type']}\); this export is tested with llama, "
    if family == "gemma3":
        arch["final_logit_softcapping"] = 30.0
        message = r"its LLM changes its logits \({'softcap': 30.0}\), which LLaVA leaves out"
    source = tiny(
        "siglip_vision_model", "llama", "chatml", lambda: text_tokenizer, dict(llm=dict(type="HFCausalLM", arch=arch))
    )
    with pytest.raises(ValueError, match=message):
        export_llava(source, tmp_path / "out")
