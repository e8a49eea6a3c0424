"""Codes as words of the LLM: both losses written out over one matrix of rows, and who gets gradients of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vlm_helpers import LLAMA, PIXEL, SEMANTIC, VOCAB, build, collate, gradients_of, row, rows, step_gradients

from asvr.data.batch import visual_sources
from asvr.models.attention import use_attention
from asvr.models.transforms import merge_transforms, transform_and_train

CODES = 6
TOKENIZER = dict(SEMANTIC["tokenizer"], depth=1)
SHARED = dict(name="word", type="SharedVocabularyTarget", tokenizer=TOKENIZER, shift=1)


def shared(**change):
    return build(reconstruction=[dict(SHARED, **change)])


def straight(model, batch):
    """Text and visual loss over [rows of the LM head; rows of codes], position by position."""
    target = model.targets[0]
    weight = torch.cat([model.llm.lm_head.weight, target.head.classifiers[0].weight])
    embeds_BTH, features = model.embed(batch)
    hidden = model.llm.hidden(embeds_BTH)[-1].flatten(0, 1)
    codes = target.tokenizer.quantize(features).flatten()

    def loss(source, word):
        return F.cross_entropy((weight @ hidden[source])[None], torch.tensor([word]))

    sources, tokens = visual_sources(batch, 1)
    places = zip(sources.tolist(), tokens.tolist(), strict=True)
    visual = sum(loss(source, VOCAB + codes[token].item()) for source, token in places)
    text = sum(loss(*pair) for pair in zip(batch.text_source_S.tolist(), batch.text_target_S.tolist(), strict=True))
    return dict(text=text, word=visual)


@pytest.mark.parametrize("name", ["text", "word"])
def test_both_losses_run_over_words_and_codes(name):
    model = shared()
    batch = collate(model, rows())
    own, wanted = model(batch)[name], straight(model, batch)[name]
    torch.testing.assert_close(own, wanted, rtol=1e-5, atol=0)
    found, expected = gradients_of(own, model), gradients_of(wanted, model)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)
    for key in ("llm.model.lm_head.weight", "heads.word.classifiers.0.weight"):
        assert found[key].abs().max() > 0


@pytest.mark.parametrize("change", [dict(joint_text=False), dict(weight=0.0)])
def test_the_text_knows_words_alone_where_it_is_asked_for_or_the_target_is_off(change):
    model, without = shared(**change), build(reconstruction=[])
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k in without.state_dict()})
    with torch.no_grad():
        own, other = model(collate(model, rows())), without(collate(without, rows()))
    assert torch.equal(own["text"], other["text"]) and torch.equal(own["correct_text"], other["correct_text"])
    assert model.text_classifier() is model.llm.lm_head


class Adapter(nn.Module):
    """Around an LM head, as LoRA's."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, VOCAB, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_an_lm_head_that_is_no_plain_layer_is_called():
    model = shared()
    torch.manual_seed(3)
    adapter = model.llm.model.lm_head = Adapter(model.llm.lm_head)
    batch = collate(model, rows())
    out = model(batch)
    grads = torch.autograd.grad(out["text"] + out["word"], [adapter.up.weight, model.targets[0].rows.weight])
    assert adapter.base.weight.grad is None and all(grad.abs().max() > 0 for grad in grads)
    merged = nn.Linear(16, VOCAB, bias=False)
    merged.weight.data = adapter.base.weight + adapter.up.weight @ adapter.down.weight
    model.llm.model.lm_head = merged
    with torch.no_grad():
        same = model(batch)
    for name in ("text", "word", "correct_text", "correct_word"):
        torch.testing.assert_close(out[name].detach(), same[name], rtol=1e-5, atol=0)


def test_low_rank_adapters_of_the_lm_head_learn_from_visual_positions():
    model = shared()
    before = model(collate(model, rows()))
    lora = dict(type="Lora", layers=["llm.*.lm_head"], r=2)
    transform_and_train(model, [lora], ["heads", "llm"])
    batch = collate(model, rows())
    out = model(batch)
    torch.testing.assert_close(out["word"], before["word"], rtol=1e-5, atol=0)
    found = gradients_of(out["word"], model)
    (adapter,) = [key for key in found if "lm_head" in key and ".lora_B." in key]
    assert found[adapter].abs().max() > 0 and found["heads.word.classifiers.0.weight"].abs().max() > 0
    with torch.no_grad():
        model.get_parameter(adapter).normal_()
        trained = model(batch)
        merge_transforms(model)
        merged = model(batch)
    for name in ("text", "word"):
        assert not torch.allclose(trained[name], before[name], rtol=1e-3)
        torch.testing.assert_close(merged[name], trained[name], rtol=1e-5, atol=0)


def test_a_tied_lm_head_and_a_half_precision_llm():
    model = build(reconstruction=[SHARED], llm=dict(LLAMA, tie_word_embeddings=True))
    out = gradients_of(model(collate(model, rows()))["word"], model)
    assert out["llm.model.model.embed_tokens.weight"].abs().max() > 0
    model = build(reconstruction=[SHARED], train=["projector", "heads"])
    with torch.no_grad():
        wanted = model(collate(model, rows()))
    model.llm.bfloat16()
    found = model(collate(model, rows()))
    torch.testing.assert_close(found["word"], wanted["word"], rtol=2e-2, atol=0)
    assert gradients_of(found["word"], model)["heads.word.classifiers.0.weight"].dtype == torch.float32


def test_a_packed_row_is_the_padded_rows():
    model = shared()
    use_attention(model, "sdpa", None)
    window = [collate(model, rows()[:4], packed=True), collate(model, rows()[4:], packed=True)]
    packed, packed_logs = step_gradients(model, window)
    padded, padded_logs = step_gradients(model, [collate(model, rows())])
    for found, wanted in ((packed, padded), (packed_logs, padded_logs)):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("sketch", ["bwwww", "bi", "biw"])
@pytest.mark.parametrize("joint", [True, False])
def test_every_trained_weight_has_a_gradient_whatever_a_batch_holds(sketch, joint):
    model = shared(joint_text=joint)
    batch = collate(model, [row(sketch, 0, supervised=3 if "ww" in sketch else 0)])
    model(batch, dict(text=1.0, word=1.0))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_accuracy_counts_the_union_and_predictions_are_codes():
    model = shared().eval()
    target, batch = model.targets[0], collate(model, rows())
    embeds_BTH, features = model.embed(batch)
    sources, tokens = visual_sources(batch, 1)
    hidden = model.llm.hidden(embeds_BTH)[-1].flatten(0, 1)[sources]
    codes = target.tokenizer.quantize(features).flatten()[tokens]
    logits = hidden @ torch.cat([model.llm.lm_head.weight, target.rows.weight]).T
    with torch.no_grad():
        assert model(batch)["correct_word"].tolist() == [(logits.argmax(-1) == VOCAB + codes).sum().item()]
    predicted, probability = target.predict(hidden, codes[:, None])
    assert torch.equal(predicted[:, 0], logits[:, VOCAB:].argmax(-1)) and predicted.shape == (len(sources), 1)
    torch.testing.assert_close(probability[:, 0], logits.softmax(-1)[:, VOCAB:].max(-1).values)


def test_no_code_is_ever_written():
    model = shared().eval()
    model.targets[0].rows.weight.data.mul_(1e4)
    batch = collate(model, [row("biw", 0)])
    embeds, _ = model.embed(batch)
    ids = model.llm.generate(embeds, batch.attention_mask_BT.long(), max_new_tokens=8, do_sample=False)
    assert ids.max() < VOCAB and len(model.llm.lm_head.weight) == VOCAB
    assert not any("word" in key for key in model.llm.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shift=0), r"reconstruction\[0\]\.shift=0: .*set shift=1"),
        (
            dict(tokenizer=dict(TOKENIZER, depth=2)),
            r"reconstruction\[0\]\.tokenizer: codes of depth 2, expected depth=1",
        ),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        shared(**change)


def test_codes_of_pixels_are_words_too():
    model = build(reconstruction=[dict(SHARED, tokenizer=PIXEL["tokenizer"])])
    with torch.no_grad():
        assert model(collate(model, rows()))["word"].isfinite()
