"""LLMs with experts: FLOPs and memory are those of the experts that a token is sent to."""

import logging

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from asvr.flops.count import Part, Sample, _with_last, flops_of, training_factor
from asvr.flops.memory import plan_memory, warn_of_memory
from asvr.flops.step import step_flops
from asvr.models.attention import set_kernel
from asvr.models.batches import full_batch
from asvr.models.checkpointing import MODES
from asvr.models.llms import HFCausalLM
from asvr.profiling.dry_run import _flops_or_why, _memory_or_why
from asvr.profiling.plan import Assumed, Cluster, plan
from asvr.recipe.preflight import build_meta, check_sizes
from asvr.recipe.recipe import Recipe
from asvr.registry import LLMS, MODELS

WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD, EXPERTS, ACTIVE = 32, 20, 2, 4, 2, 8, 8, 3
SIZES = dict(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=HEAD,
    max_position_embeddings=64,
    num_experts_per_tok=ACTIVE,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=1,
)
KINDS = dict(
    mixtral=dict(SIZES, intermediate_size=INNER, num_local_experts=EXPERTS),
    qwen3_moe=dict(SIZES, moe_intermediate_size=INNER, num_experts=EXPERTS),
    olmoe=dict({k: v for k, v in SIZES.items() if k != "head_dim"}, intermediate_size=INNER, num_experts=EXPERTS),
    gpt_oss=dict(SIZES, intermediate_size=INNER, num_local_experts=EXPERTS, rope_parameters=dict(rope_type="default")),
)
ROWS, TOKENS = 2, 40


def arch(kind: str) -> dict:
    return dict(KINDS[kind], model_type=kind)


def config(llm: dict, precision: str = "float32") -> Config:
    tower = dict(model_type="siglip_vision_model", hidden_size=16, num_hidden_layers=2, image_size=16, patch_size=4)
    model = dict(
        type="VLM",
        encoder=dict(type="HFVisionEncoder", arch=dict(tower, intermediate_size=24, num_attention_heads=2)),
        projector=dict(type="MLPProjector"),
        llm=dict(dict(type="HFCausalLM"), **llm),
        reconstruction=[],
    )
    return Config(
        dict(
            text_tokenizer=dict(type="HFTokenizer", name="unused", vocab_size=40),
            model=model,
            data=dict(micro_batch=ROWS, max_length=TOKENS, global_batch=2 * ROWS),
            optim=dict(precision=precision),
            schedule={},
            runtime=dict(compile=False),
            stages=dict(all=dict(train=["projector", "llm"])),
        )
    )


def counted(tokens: int) -> int:
    """FLOPs of the blocks: attention's four products, its two of pairs, the router, three products an active expert."""
    token = 2 * WIDTH * HEADS * HEAD + 2 * WIDTH * KV_HEADS * HEAD + WIDTH * EXPERTS + ACTIVE * 3 * WIDTH * INNER
    return 2 * LAYERS * (tokens * token + 2 * tokens**2 * HEADS * HEAD)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_of_the_active_experts(kind, dtype):
    with torch.device("meta"):
        llm = HFCausalLM(arch=arch(kind), vocab_size=40, dtype=dtype)
    for tokens in (7, 20):
        shape = (1, tokens, WIDTH)
        flops = flops_of(lambda x: llm.hidden(x)[-1], [llm], shape, dtype=getattr(torch, dtype))
        assert flops == counted(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_a_step_are_logged(kind, caplog):
    cfg = config(dict(arch=arch(kind)))
    flops = step_flops(Recipe(cfg).stages["all"])
    assert not caplog.records
    batch = full_batch(MODELS.build(cfg.model, default_args=dict(vocab_size=40)), ROWS, TOKENS)
    pairs = counted(2) - 2 * counted(1)  # of two tokens more than of twice one: a T^2 term alone
    blocks = ROWS * (TOKENS * counted(1) + (TOKENS**2 / 2 - TOKENS) * pairs / 2)
    assert flops.by_part([batch])["LLM blocks"] == pytest.approx(3 * blocks, rel=1e-6)


def test_a_checkpointed_block_computes_all_of_its_experts_again():
    with torch.device("meta"):
        llm = HFCausalLM(arch=arch("mixtral"), vocab_size=40, activation_checkpointing="full").train()
    flops, last = _with_last(lambda: flops_of(lambda x: llm.hidden(x)[-1], [llm], (1, 20, WIDTH)), llm)
    factor = training_factor(Part("LLM blocks", "llm", flops, last), ["llm"], recomputed={"LLM blocks"}, cached=False)
    llm.model.set_experts_implementation("batched_mm")  # which torch counts
    set_kernel(llm, "sdpa")  # transformers' own mask cannot be made on the meta device
    embeds_BTH = torch.zeros(1, 20, WIDTH, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        llm.hidden(embeds_BTH)[-1].sum().backward()
    assert counter.get_total_flops() == pytest.approx(flops * factor, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_the_memory_plan_is_what_autograd_keeps(kind, precision):
    cfg = config(dict(arch=arch(kind)), precision)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model, default_args=dict(vocab_size=40)).train()
    model.train_only(["projector", "llm"])
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch, half = full_batch(model, ROWS, TOKENS), precision == "bf16"
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, half, False):
        out = model(batch)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept_bytes = sum(storage.nbytes() for place, storage in kept.items() if place not in parameters)
    stage = Recipe(cfg).stages["all"]
    plan = plan_memory(stage, build_meta(stage))
    assert "text" in out and plan.activations["none"] == pytest.approx(kept_bytes, rel=0.1)


class Products(TorchDispatchMode):
    """How many products of experts are really run."""

    run = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.run += func is torch.ops.aten._grouped_mm.default
        return func(*args, **(kwargs or {}))


def test_selective_checkpointing_keeps_what_experts_give():
    def products(mode: str) -> int:
        llm = HFCausalLM(arch=arch("mixtral"), vocab_size=40, activation_checkpointing=mode).train()
        with Products() as products:
            llm.hidden(torch.randn(1, 9, WIDTH, requires_grad=True))[-1].sum().backward()
        return products.run

    assert products("none") == products("selective") < products("full")


def test_a_dry_run_and_the_warning_of_memory_are_made(caplog, monkeypatch):
    cfg = config(dict(arch=arch("mixtral")))
    models = check_sizes(Recipe(cfg))
    assert not isinstance(_flops_or_why(Recipe(cfg), models, Sample()), str)
    assert not isinstance(_memory_or_why(Recipe(cfg), models, None), str)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), dict(total_memory=1e12)))
    warn_of_memory(Recipe(cfg), torch.device("cuda"))
    assert not caplog.records


@LLMS.register_module()
class ReadsItsData(HFCausalLM):
    """An LLM of somebody's own whose experts are chosen by what it computes."""

    def hidden(self, embeds_BTH, *args, **kwargs):
        states = super().hidden(embeds_BTH, *args, **kwargs)
        return states if embeds_BTH.sum().item() > 0 else {tap: nn.functional.relu(h) for tap, h in states.items()}


def test_what_cannot_be_run_without_data_is_told_in_one_line(caplog, monkeypatch):
    cfg = config(dict(type="ReadsItsData", arch=arch("mixtral")))
    models = check_sizes(Recipe(cfg))
    told = [_flops_or_why(Recipe(cfg), models, Sample()), _memory_or_why(Recipe(cfg), models, None)]
    assert told[0].startswith("FLOPs are not counted: ") and told[1].startswith("Memory is not planned: ")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), dict(total_memory=1e12)))
    with caplog.at_level(logging.WARNING, logger="asvr"):
        warn_of_memory(Recipe(cfg), torch.device("cuda"))
        assert step_flops(Recipe(cfg).stages["all"]) is None
    told += [record.getMessage() for record in caplog.records]
    assert len(told) == 4 and told[2].startswith("memory is not planned: ")
    with pytest.raises(ValueError, match="stage all cannot be planned: ") as refused:
        plan(cfg, Cluster(1, 1), Assumed())
    assert not any("\n" in line for line in [*told, str(refused.value)])


def test_every_way_of_checkpointing_is_planned():
    cfg = config(dict(arch=arch("mixtral")))
    stage = Recipe(cfg).stages["all"]
    kept = plan_memory(stage, build_meta(stage)).activations
    assert list(kept) == list(MODES) and kept["full"] < kept["selective"] < kept["none"]
