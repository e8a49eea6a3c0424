"""What offloaded states take of a machine's memory, and who is told."""

import pytest
from test_memory import config

from asvr.base import free_memory
from asvr.flops import host_memory
from asvr.flops.host_memory import fits_host, held_on_host, require_offload, warn_of_host_memory
from asvr.flops.states import states_of
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe


def offloaded(**parallel):
    cfg = config(dtype="bfloat16")
    cfg.stages = dict(pretrain=dict(train=["projector", "heads"]))
    cfg.parallel = dict(type="FSDP2", cpu_offload=True, **parallel)
    return cfg


def test_the_memory_of_a_machine_is_the_smallest_limit(tmp_path, monkeypatch):
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    300 kB\n")
    monkeypatch.setattr(free_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(free_memory, "LIMITS", ((str(limit), "unused"),))
    assert free_memory.machine_bytes() == 1000 * 1024
    limit.write_text("max\n")
    assert free_memory.machine_bytes() == 1000 * 1024
    limit.write_text("5000\n")
    assert free_memory.machine_bytes() == 5000
    meminfo.unlink()
    assert free_memory.machine_bytes() is None


def test_frozen_weights_are_held_in_their_own_dtype():
    """By hand: 2 bytes for each frozen weight of the LLM, and 16 for each trained one, shared by the processes."""
    stage = Recipe(offloaded()).stages["pretrain"]
    model = build_meta(stage)
    llm = sum(p.numel() for p in model.llm.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    others = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) - 2 * llm - 4 * trained
    needed = 2 * llm + 16 * trained + others
    states = states_of(stage, model)
    assert held_on_host(stage, states, 1, 1) == needed
    assert held_on_host(stage, states, 16, 8) == pytest.approx(needed / 2, abs=8)  # two machines have a half each
    stage.parallel["shard"] = 8
    assert held_on_host(stage, states, 16, 8) == pytest.approx(needed, abs=8)  # a copy on each machine
    stage.parallel["cpu_offload"] = False
    assert held_on_host(stage, states, 1, 1) == 0


LARGE, SMALL = ("a", 1e12), ("b", 1e5)  # names of machines, and the bytes of their memory


@pytest.mark.parametrize("processes, warned", [([LARGE], False), ([SMALL], True), ([LARGE, SMALL], True)])
def test_a_run_that_does_not_fit_the_smallest_machine_is_told(processes, warned, monkeypatch, caplog):
    monkeypatch.setattr(host_memory, "gather", lambda own: processes)
    warn_of_host_memory(Recipe(offloaded()))
    assert [record.args[0] for record in caplog.records] == ["pretrain"] * warned
    assert not warned or "it is likely to be killed" in caplog.text


@pytest.mark.parametrize("machines, warned", [(1, True), (2, False)])
def test_processes_of_one_machine_share_its_memory(machines, warned, monkeypatch, caplog):
    """Four processes with a copy of the states for each two of them."""
    stage = Recipe(cfg := offloaded(shard=2)).stages["pretrain"]
    copy = held_on_host(stage, states_of(stage, build_meta(stage)), 4, 2)
    processes = [(f"node{i % machines}", 1.5 * copy) for i in range(4)]  # room for one copy, not for two
    monkeypatch.setattr(host_memory, "gather", lambda own: processes)
    monkeypatch.setattr(host_memory, "get_world_size", lambda: 4)
    warn_of_host_memory(Recipe(cfg))
    assert bool(caplog.records) == warned


def test_nothing_is_told_without_offloaded_states_or_if_the_system_does_not_say(monkeypatch, caplog):
    monkeypatch.setattr(host_memory, "gather", lambda own: [("a", 1)])
    warn_of_host_memory(Recipe(config()))
    monkeypatch.setattr(host_memory, "gather", lambda own: [("a", None), ("b", 1)])
    warn_of_host_memory(Recipe(offloaded()))
    assert not caplog.records


def test_a_quarter_of_the_memory_is_left():
    assert fits_host(75, 100) and not fits_host(76, 100)


def test_the_option_needs_offloaded_states():
    require_offload(Recipe(offloaded()), 64.0)
    require_offload(Recipe(config()), None)
    with pytest.raises(ValueError, match="--host-memory has no effect: no stage has parallel.cpu_offload=True"):
        require_offload(Recipe(config()), 64.0)
    with pytest.raises(ValueError, match="--host-memory -1: expected a number above 0"):
        require_offload(Recipe(offloaded()), -1.0)
