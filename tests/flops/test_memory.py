"""The memory plan against what autograd really keeps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from data_helpers import FixedTokens
from mmengine.config import Config
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from asvr.flops.memory import (
    Machine,
    MemoryPlan,
    _half_copies,
    largest_micro_batch,
    plan_memory,
    warn_of_memory,
)
from asvr.models.batches import full_batch
from asvr.models.checkpointing import MODES
from asvr.models.transforms import transform_and_train
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe
from asvr.registry import MODELS

ROWS, TOKENS = 2, 40
HIDDEN, LAYERS = 32, 3


def config(**llm) -> Config:
    arch = dict(intermediate_size=64, num_attention_heads=2)
    tower = dict(
        model_type="siglip_vision_model", hidden_size=16, num_hidden_layers=2, image_size=16, patch_size=4, **arch
    )
    decoder = dict(model_type="llama", vocab_size=100, hidden_size=HIDDEN, num_hidden_layers=LAYERS, **arch)
    target = dict(
        name="semantic",
        tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=8),
        head=dict(type="DepthTransformerHead", width=16, layers=1, num_heads=2),
        shift=1,
    )
    model = dict(
        type="VLM",
        encoder=dict(type="HFVisionEncoder", arch=tower),
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", arch=decoder, **llm),
        reconstruction=[target],
    )
    return Config(
        dict(
            text_tokenizer=dict(type="HFTokenizer", name="unused"),
            model=model,
            data=dict(micro_batch=ROWS, max_length=TOKENS),
            optim=dict(precision="float32"),
            schedule=dict(epochs=1, warmup_ratio=0.0),
            runtime=dict(compile=False),
            stages=dict(pretrain=dict(train=["projector", "heads"]), all=dict(train=["projector", "heads", "llm"])),
        )
    )


def plan_of(cfg: Config, name: str) -> MemoryPlan:
    stage = Recipe(cfg).stages[name]
    return plan_memory(stage, build_meta(stage))


def really_kept(model: nn.Module, half: bool = False) -> int:
    """Bytes that a forward pass with real tensors leaves for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch = full_batch(model, ROWS, TOKENS)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half, cache_enabled=False)
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        out = model(batch)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {"text", "semantic"} <= out.keys()
    return sum(storage.nbytes() for place, storage in kept.items() if place not in parameters)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stage", ["pretrain", "all"])
def test_activations_are_what_autograd_keeps(stage, precision):
    """In bf16 with the copies of the weights, of a frozen LLM too."""
    cfg = config()
    cfg.optim.precision = precision
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.train_only(list(cfg.stages[stage].train))
    plan = plan_of(cfg, stage)
    assert plan.activations["none"] == pytest.approx(really_kept(model.train(), precision == "bf16"), rel=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_checkpointed_head_keeps(mode):
    """Against all bytes that a forward pass takes and does not give back."""
    cfg = config()
    cfg.model.reconstruction[0].head.activation_checkpointing = mode
    cfg.model.reconstruction[0].head.update(width=64, layers=3)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.train_only(list(cfg.stages["pretrain"].train))
    plan, batch = plan_of(cfg, "pretrain"), full_batch(model, ROWS, TOKENS)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        out = model.train()(batch)
    blocks = [event.nbytes() for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert "semantic" in out and plan.activations["none"] == pytest.approx(sum(blocks), rel=0.1)


def test_a_packed_row_holds_more_images():
    """40 tokens a row, 16 of them visual: a packed row of 160 holds images with 64 tokens of text each."""
    cfg = config()
    padded, image = plan_of(cfg, "all"), FixedTokens(16).largest()
    assert largest_micro_batch(cfg.data, image) == (ROWS, TOKENS, ROWS)
    cfg.data = dict(micro_batch=4, max_length=TOKENS, pack=True)
    assert largest_micro_batch(cfg.data, image) == (1, 160, 2)
    assert largest_micro_batch(Config(dict(cfg.data, pack=dict(max_images=1))), image) == (1, 160, 1)
    batch = full_batch(build_meta(Recipe(cfg).stages["all"]), 1, 160, 2)
    assert batch.num_images == 2 and batch.num_text_targets == 160 - 2 * 16 - 1
    assert batch.visual_position_V.view(-1, batch.num_cells)[:, 0].tolist() == [1, 81]
    packed = plan_of(cfg, "all")
    assert packed.states == padded.states and packed.activations["none"] > 1.5 * padded.activations["none"]


def test_states_follow_from_what_is_trained():
    cfg = config()
    plan = plan_of(cfg, "pretrain")
    meta = MODELS.build(cfg.model)
    trained = sum(p.numel() for name in ("projector", "heads") for p in meta.components()[name].parameters())
    assert (plan.gradients, plan.optimizer) == (4 * trained, 8 * trained)
    cfg.optim.precision = "bf16"
    half = plan_of(cfg, "pretrain")
    assert half.states == plan.states and half.activations["none"] < plan.activations["none"]


def test_half_copies_of_weights_are_of_one_block_at_a_time_where_blocks_are_computed_again():
    model = MODELS.build(config().model)
    in_blocks = sum(p.numel() for block in model.llm.blocks for p in block.parameters() if p.ndim == 2)
    model.train_only(["projector", "heads"])  # gradients pass through the frozen LLM
    of_all, of_one = _half_copies(model, torch.bfloat16)
    assert of_all - of_one == 2 * in_blocks - 2 * in_blocks // LAYERS
    model.train_only(["heads"])  # none does
    assert _half_copies(model, torch.bfloat16) == (of_all - 2 * in_blocks - 2 * projector(model),) * 2
    assert _half_copies(model, None) == (0, 0)


def projector(model: nn.Module) -> int:
    return sum(p.numel() for p in model.projector.parameters() if p.ndim == 2)


def test_half_weights_take_as_much_as_whole_ones():
    """Two bytes are in the model and two in the optimiser; moments and sums of gradients are float32."""
    half, whole = plan_of(config(dtype="bfloat16"), "all"), plan_of(config(), "all")
    assert half.states == whole.states and half.gradients == whole.gradients
    assert half.weights < whole.weights and half.optimizer > whole.optimizer


def test_moments_in_bfloat16_take_half():
    cfg = config()
    cfg.optim.moments = "bfloat16"
    assert plan_of(cfg, "all").optimizer * 2 == plan_of(config(), "all").optimizer


def test_a_compiled_llm_keeps_what_selective_checkpointing_keeps():
    cfg = config()
    cfg.runtime.compile = True
    plan = plan_of(cfg, "all")
    assert (
        plan.mode == "selective" and plan.activations["selective"] < plan_of(config(), "all").activations["selective"]
    )
    cfg.model.llm.activation_checkpointing = "full"
    assert plan_of(cfg, "all").mode == "full"


def card(cards: int, gigabytes: int) -> Machine:
    return Machine(cards, f"{gigabytes} GB", gigabytes * 1e9)


@pytest.mark.parametrize("card_bytes, warned", [(80e6, []), (1.2e6, ["all"])])
def test_a_stage_that_does_not_fit_the_device_is_told_before_it_runs(card_bytes, warned, monkeypatch, caplog):
    device = SimpleNamespace(total_memory=card_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    warn_of_memory(Recipe(config()), torch.device("cuda"))
    assert sorted(record.args[0] for record in caplog.records) == warned
    caplog.clear()
    warn_of_memory(Recipe(config()), torch.device("cpu"))
    assert not caplog.records


def test_activation_checkpointing_keeps_one_block_and_the_inputs_of_all():
    plans = {mode: plan_of(config(activation_checkpointing=mode), "all") for mode in MODES}
    assert all(plan.mode == mode and plan.activations == plans["none"].activations for mode, plan in plans.items())
    kept = plans["none"].activations
    assert kept["full"] < kept["selective"] < kept["none"]
    inputs = LAYERS * ROWS * TOKENS * HIDDEN * 4
    in_blocks = (kept["none"] - kept["full"] + inputs) * LAYERS / (LAYERS - 1)
    assert 0 < in_blocks <= kept["none"]
    for mode, plan in plans.items():
        assert plan.per_card(card(1, 80)) == plan.states + kept[mode]


def test_states_are_shared_by_the_cards_and_activations_are_not():
    plan = MemoryPlan(
        weights=40 * 10**9,
        gradients=20 * 10**9,
        optimizer=20 * 10**9,
        activations=dict(none=10 * 10**9, selective=7 * 10**9, full=5 * 10**9),
        copies=dict(none=0, selective=0, full=0),
        mode="none",
    )
    assert plan.per_card(card(8, 80)) == 20 * 10**9
    assert [plan.fits(card(*m)) for m in ((1, 80), (2, 80), (8, 20), (1, 141))] == [False, True, False, True]
    packed = replace(plan, whole=8 * 10**9)  # of the weights
    assert packed.per_card(card(8, 80)) == (8 + 72 / 8 + 10) * 10**9
    assert packed.per_card(card(1, 80)) == plan.per_card(card(1, 80))


def test_with_offloaded_states_a_card_holds_weights_in_use():
    """By hand: the root unit and its gradients, two blocks in half precision and theirs."""
    cfg = config()
    cfg.parallel = dict(type="FSDP2", cpu_offload=True, param_dtype="bfloat16", frozen="replicate")
    model, plain = build_meta(Recipe(cfg).stages["all"]), plan_of(config(), "all")
    plan = plan_of(cfg, "all")
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    block = sum(p.numel() for p in model.llm.blocks[0].parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    in_use = 2 * 4 * (trained - LAYERS * block) + 2 * 2 * 2 * block
    assert plan.per_card(card(8, 80)) == 4 * frozen + in_use + plain.activations["none"]
    assert plan.on_cpu(1) == plain.states - 4 * frozen and plan.on_cpu(8) == plan.on_cpu(1) // 8
    assert plain.on_cpu(1) == 0
    cfg.parallel.update(reduce_each=False, reshard_after_forward=False)
    more = 4 * trained + 2 * block * (LAYERS + 2 - 4)
    assert plan_of(cfg, "all").per_card(card(8, 80)) == plan.per_card(card(8, 80)) + more


def test_a_trained_encoder_keeps_its_activations():
    cfg = config()
    frozen = plan_of(cfg, "all").activations["none"]
    cfg.stages["all"]["train"] = ["encoder", "projector", "heads", "llm"]
    assert plan_of(cfg, "all").activations["none"] > frozen


def test_a_meta_model_takes_no_memory_and_trains_what_the_stage_names():
    model = build_meta(Recipe(config()).stages["pretrain"])
    assert all(p.is_meta for p in model.parameters())
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"projector", "heads"}


@pytest.mark.parametrize(("precision", "dropout"), [("float32", 0.0), ("bf16", 0.0), ("bf16", 0.3)])
def test_adapters_take_what_they_are(precision, dropout):
    """Their base has neither gradients nor moments; a gradient's way through it keeps what it kept."""
    cfg, lora = config(), dict(type="Lora", layers=["llm.*.layers"], r=4, dropout=dropout)
    cfg.optim.precision, cfg.model_transforms = precision, [lora]
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    transform_and_train(model, [lora], ["projector", "llm"])
    cfg.stages = dict(tune=dict(train=["projector", "llm"]))
    plan = plan_of(cfg, "tune")
    adapters = sum(p.numel() for key, p in model.llm.named_parameters() if ".lora_" in key)
    trained = adapters + sum(p.numel() for p in model.projector.parameters())
    assert 0 < adapters < sum(p.numel() for p in model.llm.parameters()) / 2
    assert plan.gradients == 4 * trained and plan.optimizer == 8 * trained
    assert plan.activations["none"] == pytest.approx(really_kept(model.train(), precision == "bf16"), rel=0.1)
