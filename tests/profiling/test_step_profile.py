"""Where the time of a step goes, by kind of operation."""

import json

import pytest
from run_helpers import call_tool
from test_throughput import ASVR, spec

from asvr.profiling.step_profile import kind_of, markdown, profile_step, shares
from asvr.profiling.worker import Worker


@pytest.mark.parametrize(
    "name, kind",
    [
        ("aten::mm", "products"),
        ("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NTN", "products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>", "sums"),
        ("triton_poi_fused__to_copy_0", "casts"),
        ("aten::copy_", "casts"),
        ("aten::_fused_adamw_", "optimiser"),
        ("multi_tensor_apply_kernel<at::native::FusedOptimizerTensorListMetadata<4>", "optimiser"),
        ("aten::_log_softmax", "softmax"),
        ("aten::mul", "other"),
        ("aten::view", "other"),
        ("aten::addcmul", "other"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_the_profile_of_a_step():
    worker = Worker(spec() | dict(samples=2, steps=2, first=0))
    worker.run(1)
    rows = profile_step(worker)
    found = shares(rows)
    assert sum(found.values()) == pytest.approx(100) and {"products", "attention", "optimiser"} <= found.keys()
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert "| products |" in markdown(rows) and "| aten::mm | products |" in markdown(rows)


def test_the_script_writes_the_profile_and_prints_the_shares(tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_KEEP_MEMORY", "0")  # the setting would stay in this process
    options = [f"{key}={value}" for key, value in spec()["cfg_options"].items()]
    options = ["--samples", "2", "--warm-up", "1", "--out", tmp_path / "profile", "--cfg-options", *options]
    done = call_tool("benchmarks/profile_step.py", ASVR, *options)
    assert done.returncode == 0, done.stderr
    name, figures = done.stdout.splitlines()[-1].split(" ", 1)
    assert name == "FIGURES" and {"seconds", "products_percent"} <= json.loads(figures).keys()
    assert ASVR in (tmp_path / "profile.md").read_text()
    assert "freed memory" not in json.loads((tmp_path / "profile.json").read_text())["how"]
