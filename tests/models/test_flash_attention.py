"""Torch's switch between implementations of flash attention: which is tried, which stays, and what is told."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn import attention as torch_attention

from asvr.models import attention, flash_attention
from asvr.models.attention import choose, problem_of
from asvr.models.flash_attention import active, without_flash

CUDA, HALF = torch.device("cuda"), torch.bfloat16
HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)


@pytest.fixture
def machine(monkeypatch):
    """Stands in for a machine with a GPU, and for torch's switch.

    works: kernels that give right results. installed: modules. broken: implementations that cannot be imported. widest:
    the widest head of a kernel that has a limit. tried: the cases of each kernel."""
    own = SimpleNamespace(capability=HOPPER, works={"varlen", "xformers"}, installed=set(), broken=set(), widest={})
    own.switch, own.history, own.tried = None, [], {}

    def activate(name):
        own.switch = None  # as torch does
        if name in own.broken:
            raise ImportError(f"{name}: undefined symbol")
        own.switch = name
        own.history.append(name)

    def probe(name, device, dtype, **case):
        assert own.switch == flash_attention.implementation_of(name), "the kernel is tried with another implementation"
        own.tried.setdefault(name, []).append((case["width"], case["window"], case.get("packed", True)))
        if max(case["width"]) > own.widest.get(name, 10_000):
            raise RuntimeError("head dimension is too large")
        return 0.0 if name in own.works else 1.0

    def find_spec(name, *args):
        return object() if name in own.installed | {"xformers"} else None

    monkeypatch.setattr(torch_attention, "activate_flash_attention_impl", activate)
    monkeypatch.setattr(torch_attention, "restore_flash_attention_impl", lambda: setattr(own, "switch", None))
    monkeypatch.setattr(torch_attention, "current_flash_attention_impl", lambda: own.switch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: own.capability)
    monkeypatch.setattr(attention, "_probe", probe)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return own


def test_torch_has_the_switch_that_is_used():
    assert {own.name for own in flash_attention.IMPLEMENTATIONS.values()} <= set(
        torch_attention.list_flash_attention_impls()
    )
    assert active() is None
    with pytest.raises(ImportError, match="flash_attn_interface"), flash_attention.switched("varlen_fa3"):
        raise AssertionError("it is not installed here")
    assert active() is None


@pytest.mark.parametrize(
    ("capability", "works", "chosen", "switch"),
    [
        (HOPPER, {"varlen_fa3", "varlen_fa4", "varlen"}, "varlen_fa3", "FA3"),
        (HOPPER, {"varlen_fa4", "varlen"}, "varlen_fa4", "FA4"),
        (BLACKWELL, {"varlen_fa3", "varlen_fa4", "varlen"}, "varlen_fa4", "FA4"),
        (AMPERE, {"varlen_fa3", "varlen_fa4", "varlen"}, "varlen", None),
        (HOPPER, {"varlen"}, "varlen", None),
        (HOPPER, {"xformers"}, "xformers", None),
        (HOPPER, set(), "sdpa", None),
    ],
)
def test_the_fastest_that_works_is_chosen_and_stays(machine, capability, works, chosen, switch):
    machine.capability, machine.works = capability, works
    machine.installed = {"flash_attn_interface", "flash_attn.cute"}
    for _ in range(2):  # again, with one that is active
        assert choose("auto", CUDA, HALF)[0] == chosen and machine.switch == switch
    assert choose("sdpa", CUDA, HALF)[0] == "sdpa" and machine.switch is None


def test_a_kernel_must_work_with_all_heads_of_the_llm(machine):
    """Gemma 4: the heads of its global layers are wider than flash attention takes."""
    machine.installed, machine.works = {"flash_attn.cute"}, {"varlen_fa4", "varlen", "xformers"}
    machine.widest = {"varlen_fa4": 256, "varlen": 256}
    widths = [(256, 256), (512, 512)]
    assert choose("auto", CUDA, HALF, widths[:1])[0] == "varlen_fa4"
    name, why = choose("auto", CUDA, HALF, widths)
    assert (name, machine.switch) == ("xformers", None)
    assert "varlen: fails here with heads of width 512 (RuntimeError: head dimension is too large)" in why
    assert {case[0] for case in machine.tried["xformers"]} == set(widths)
    with pytest.raises(ValueError, match="runtime.attention='varlen': fails here with heads of width 512"):
        choose("varlen", CUDA, HALF, widths)
    machine.works = {"varlen"}
    assert choose("auto", CUDA, HALF, widths)[0] == "sdpa"
    machine.widest = dict(varlen=128)
    assert "with heads of width 192 and values of width 128" in problem_of("varlen", CUDA, HALF, [(192, 128)])


def test_each_width_is_tried_packed_with_and_without_a_window_and_alone(machine):
    machine.installed, machine.works = {"flash_attn.cute"}, {"varlen_fa4", "varlen"}
    assert problem_of("varlen", CUDA, HALF, [(96, 96)]) is None
    assert machine.tried["varlen"] == [((96, 96), None, True), ((96, 96), 4, True)]
    assert problem_of("varlen_fa4", CUDA, HALF, [(96, 96)]) is None
    alone = {width for width, _, packed in machine.tried["varlen_fa4"] if not packed}
    assert {(96, 96), (72, 72)} < alone  # the vision tower's too, since SDPA is switched


def test_one_that_fails_leaves_the_switch_as_it_was(machine):
    machine.installed = {"flash_attn_interface", "flash_attn.cute"}
    machine.broken, machine.switch = {"FA3"}, "FA4"
    assert problem_of("varlen_fa3", CUDA, HALF) == "fails here (ImportError: FA3: undefined symbol)"
    assert machine.switch == "FA4"
    assert (
        problem_of("varlen_fa4", CUDA, HALF)
        == "differs from SDPA by 1.0e+00 of the largest value with heads of width 64"
    )
    assert problem_of("varlen", CUDA, HALF) is None and machine.switch == "FA4"
    name, why = choose("auto", CUDA, HALF)
    assert (name, machine.switch) == ("varlen", None) and why.startswith("varlen_fa3: fails here (ImportError")


def test_what_cannot_be_tried_is_told(machine, monkeypatch):
    assert problem_of("varlen_fa4", CUDA, HALF) == "not installed (pip install flash-attn-4)"
    assert problem_of("varlen_fa3", CUDA, HALF).startswith(
        "not installed (build FlashAttention-3 from the folder hopper"
    )
    assert problem_of("varlen_fa4", CUDA, torch.float32) == "needs bf16 or fp16, not torch.float32"
    machine.capability = BLACKWELL
    assert problem_of("varlen_fa3", CUDA, HALF) == "needs a GPU of capability 9.x, this is 10.0"
    machine.capability = AMPERE
    with pytest.raises(
        ValueError, match="runtime.attention='varlen_fa4': needs a GPU of capability 9.x or 10.x, this is 8"
    ):
        choose("varlen_fa4", CUDA, HALF)
    with pytest.raises(
        ValueError, match="runtime.attention='varlen_fa3': needs CUDA, this is cpu; use 'auto' or 'sdpa'"
    ):
        choose("varlen_fa3", torch.device("cpu"), HALF)
    monkeypatch.setattr(torch_attention, "list_flash_attention_impls", lambda: ["FA4"])
    assert "has no FA3, later versions do" in problem_of("varlen_fa3", CUDA, HALF)
    for name in ("activate", "restore", "current"):
        monkeypatch.delattr(torch_attention, f"{name}_flash_attention_impl")
    assert "has no FA4, later versions do" in problem_of("varlen_fa4", CUDA, HALF)
    assert choose("auto", CUDA, HALF)[0] == "varlen" and active() is None


def test_dropout_is_not_given_to_flash_attention_without_it(machine):
    q = torch.randn(1, 2, 4, 8)
    for switch, dropout, expected in ((None, 0.1, True), ("FA4", 0.0, True), ("FA4", 0.1, False)):
        machine.switch = switch
        with without_flash(dropout):
            assert torch.backends.cuda.flash_sdp_enabled() is expected
            assert F.scaled_dot_product_attention(q, q, q, dropout_p=dropout).isfinite().all()
    assert torch.backends.cuda.flash_sdp_enabled()
