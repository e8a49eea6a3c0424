"""Where the time of a step goes, by kind of operation."""

import pytest
from test_throughput import spec

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
