"""Transforms change a model in order; adapters leave it as it is until they are trained, and can be merged."""

import sys

import pytest
import torch
from engine_helpers import LLAMA, SIGLIP, collate, item, tiny_model
from PIL import Image

from asvr.engine.saved import saved_tensors
from asvr.models.transforms import apply_transforms, merge_transforms, transform_and_train
from asvr.registry import MODEL_TRANSFORMS

LORA = dict(type="Lora", layers=["llm.*.self_attn", "llm.*.lm_head"], r=2)


def batch_of(model):
    return collate(model)([item(image=Image.new("RGB", (8, 8), "red")), item()])


def adapted(train=("projector", "llm"), **changes):
    """With adapters that do something, as if they had been trained."""
    model = tiny_model()
    model.llm.source = "a/llm"
    transform_and_train(model, [dict(LORA, **changes)], list(train))
    for key, parameter in model.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def losses(model) -> dict[str, float]:
    model.eval()
    return {key: value.sum().item() for key, value in model(batch_of(model)).items()}


def test_new_adapters_change_nothing():
    model = tiny_model()
    before = losses(model)
    apply_transforms(model, [LORA])
    assert losses(model) == pytest.approx(before, rel=1e-6)


def test_the_adapters_alone_are_trained():
    model = adapted().train()
    trained = {key for key, p in model.llm.named_parameters() if p.requires_grad}
    assert trained == model.llm.apart == {key for key, _ in model.llm.named_parameters() if ".lora_" in key}
    model.train_step([batch_of(model)], _NoStep())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.llm.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.llm.parameters() if not p.requires_grad)
    model.train_only(["projector"])
    assert not any(p.requires_grad for p in model.llm.parameters())


class _NoStep:
    """An optimiser that leaves gradients where they are."""

    optim_context = staticmethod(lambda model: torch.enable_grad())
    backward = staticmethod(torch.Tensor.backward)
    step = zero_grad = staticmethod(lambda: None)


def test_merged_is_unmerged():
    model, plain = adapted(), tiny_model()
    before = losses(model)
    assert before != pytest.approx(losses(plain), rel=1e-3)
    merge_transforms(model)
    assert losses(model) == pytest.approx(before, rel=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys() and not model.transforms
    assert model.llm.source is None  # no file holds what is merged
    model.train_only(["llm"])
    assert all(p.requires_grad for p in model.llm.parameters())


def test_adapters_of_half_precision_layers_are_float32():
    model = tiny_model()
    model.llm.to(torch.bfloat16)
    apply_transforms(model, [LORA])
    dtypes = {".lora_" in key: p.dtype for key, p in model.llm.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    model.train()(batch_of(model), model.count_targets([batch_of(model)]))["loss"].backward()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["llm.*.self_atn"], r"matches no linear layer; did you mean 'llm.\*.self_attn'"),
        (["llm.*norm*"], "matches no linear layer"),
        (["tokenizer.semantic"], "matches no linear layer"),
    ],
)
def test_layers_that_are_none_are_told(layers, message):
    with pytest.raises(ValueError, match=message):
        apply_transforms(tiny_model(), [dict(LORA, layers=layers)])


def test_a_tied_head_and_a_second_set_of_adapters_are_refused():
    with pytest.raises(ValueError, match="llm.model.lm_head shares its weight with another layer"):
        apply_transforms(tiny_model(tied=True), [LORA])
    with pytest.raises(ValueError, match="the llm already has adapters"):
        apply_transforms(tiny_model(), [LORA, dict(LORA, layers=["llm.*.mlp"])])


def test_components_may_have_adapters_of_their_own():
    model = tiny_model()
    before = losses(model)
    encoder = dict(LORA, layers=["encoder.*.q_proj", "projector.mlp.0", "heads.*.classifiers"], r=3)
    apply_transforms(model, [LORA, encoder])
    assert {p.shape[0] for k, p in model.named_parameters() if ".lora_A." in k} == {2, 3}
    merge_transforms(model, keep=1)
    assert len(model.transforms) == 1 and not any("lora" in key for key in model.encoder.state_dict())
    merge_transforms(model)
    assert losses(model) == pytest.approx(before, rel=1e-6)


def test_a_missing_peft_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"Lora needs peft .*: pip install 'asvr\[lora\]'"):
        apply_transforms(tiny_model(), [LORA])


# Of one's own --------------------------------------------------------------------------------------------------


@MODEL_TRANSFORMS.register_module()
def scale_head(model, factor: float = 2.0):
    """Run behind another, it sees what that made."""
    model.llm.lm_head.weight.data *= factor
    return model


@MODEL_TRANSFORMS.register_module()
class ExtraNorm:
    def __call__(self, model):
        model.projector = torch.nn.Sequential(model.projector, torch.nn.LayerNorm(16))


@MODEL_TRANSFORMS.register_module()
def another_model(model):
    return torch.nn.Linear(2, 2)


def test_transforms_run_in_order():
    model, plain = tiny_model(), tiny_model()
    transform_and_train(model, [dict(type="scale_head", factor=3.0), dict(type="ExtraNorm")], ["projector"])
    assert torch.equal(model.llm.lm_head.weight, 3 * plain.llm.lm_head.weight)
    assert model.projector[1].weight.requires_grad and not model.llm.lm_head.weight.requires_grad
    with pytest.raises(ValueError, match="'another_model' returned Linear.*: change the model in place"):
        apply_transforms(model, [dict(type="another_model")])


def test_the_meta_device_holds_no_adapter():
    with torch.device("meta"):
        from asvr.models.vlm import VLM

        model = VLM(
            encoder=dict(type="HFVisionEncoder", arch=SIGLIP),
            projector=dict(type="LinearProjector"),
            llm=dict(type="HFCausalLM", arch=LLAMA),
            reconstruction=[],
            vocab_size=32,
        )
        apply_transforms(model, [LORA])
    assert all(parameter.is_meta for parameter in model.parameters())


@MODEL_TRANSFORMS.register_module()
def new_weights(factor: float, model):
    """A tensor may get the place in memory, and the id, of one that it takes the place of."""
    for layer in model.llm.modules():
        if type(layer) is torch.nn.Linear:
            layer.weight = torch.nn.Parameter(layer.weight.detach() * factor)


def test_weights_that_are_replaced_are_in_no_file():
    model = tiny_model(train=["projector"])
    model.llm.source = "a/llm"
    transform_and_train(model, [dict(type="new_weights", factor=2.0)], ["projector"])
    linear = {f"{key}.weight" for key, layer in model.llm.named_modules() if type(layer) is torch.nn.Linear}
    assert model.llm.apart == linear
    assert saved_tensors(model.llm).keys() == linear
