"""Each test fails when a workaround in asvr/base/compat.py is no longer needed."""

import importlib.util
import inspect
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.torch_version import TorchVersion

from asvr.base import compat
from asvr.base.weight_files import write_folder


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def test_torch_still_warns_about_the_enums_of_torchao():
    """Remove `compat.hide_enum_warnings_of_torchao` when it no longer does."""
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    if TorchVersion(torch.__version__) < "2.14":
        pytest.skip("this torch does not warn")
    code = """if True:
        import logging
        made, shown, logger = [], [], logging.getLogger("torch.utils._pytree")
        logger.addFilter(lambda record: made.append(record) or True)
        import asvr.base.compat
        logger.addFilter(lambda record: shown.append(record) or True)
        import torchao
        print(len(made), len(shown))
        logger.warning("something else")
        print(len(shown))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    made, shown, others = map(int, done.stdout.split())
    assert made > 0 and shown == 0 and others == 1 and "Enum" not in done.stderr


def test_fvcore_still_counts_nothing_for_attention():
    from fvcore.nn import FlopCountAnalysis

    inputs = tuple(torch.zeros(1, 2, 5, 4) for _ in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(Attention(), inputs).unsupported_ops_warnings(False).tracer_warnings("none")
        assert analysis.total() == 0
    assert compat.count_macs(Attention(), ((1, 2, 5, 4),) * 3, torch.float32) == 2 * 5 * 5 * (4 + 4)


def kept_in_half(linear: nn.Linear) -> int:
    """Tensors of the weight's size that a compiled linear layer keeps in bfloat16 for its backward pass."""
    torch._dynamo.reset()
    compiled, kept = torch.compile(linear, backend="aot_eager_decomp_partition"), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    ):
        compiled(torch.randn(5, linear.in_features, requires_grad=True))
    return sum(t.numel() == linear.weight.numel() and t.dtype == torch.bfloat16 for t in kept)


def test_compiled_regions_still_keep_half_copies_of_weights():
    from torch._functorch import config

    with config.patch(ban_recompute_materialized_backward=True):  # torch's default
        assert kept_in_half(nn.Linear(8, 6)) == 1
        compat.keep_no_half_copies()
        assert kept_in_half(nn.Linear(8, 6)) == 0


def test_lmms_eval_still_makes_texts_of_losses():
    instance = pytest.importorskip("lmms_eval.api.instance", reason="lmms-eval is not installed")
    assert instance.unwrap_generation_output((1.5, True))[0] == "(1.5, True)"
    assert instance.unwrap_generation_output(compat.lmms_eval_result((1.5, True)))[0] == (1.5, True)


def test_datasets_still_ignores_what_hf_download_fetched(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (it comes with lmms-eval)")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--nobody--Nothing" / "snapshots" / "abc"
    (folder.parent.parent / "refs").mkdir(parents=True)
    (folder.parent.parent / "refs" / "main").write_text("abc")
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text('{"n": 1}\n')
    own = dict(cache_dir=str(tmp_path / "datasets"), split="test")
    with pytest.raises(ConnectionError):
        datasets.load_dataset("nobody/Nothing", **own)
    with compat.read_downloaded_datasets(lambda name, subset: folder if name == "nobody/Nothing" else None):
        assert datasets.load_dataset("nobody/Nothing", **own)["n"][:] == [1]
    with pytest.raises(ConnectionError):
        datasets.load_dataset("nobody/Nothing", **own)


def test_meta_convolution_still_refuses_traced_padding():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0").eval()
    with pytest.raises(TypeError):
        compat._trace(network, ((1, 3, 64, 64),), torch.float32, "meta")
    assert compat.count_macs(network, ((1, 3, 64, 64),), torch.float32) > 10**7


def test_checkpointing_has_two_names_or_one():
    """When the oldest supported transformers has the new name, the old one can go."""
    from transformers import PreTrainedModel

    assert "gradient_checkpointing_enable" in dict(inspect.getmembers(PreTrainedModel)), "drop the old name"


def test_the_cache_has_two_names_or_one():
    """When the oldest supported transformers has the new name, the old one can go."""
    from transformers import LlamaModel

    assert "past_key_values" in inspect.getsource(LlamaModel.forward), "drop the old name"
    assert compat.cache_argument(LlamaModel) in inspect.signature(LlamaModel.forward).parameters


def test_ddp_still_has_two_names_for_leaving_buffers_alone():
    """Fails once `forward_sync_buffers` is in the oldest torch that is supported, 2.11 now."""
    assert "broadcast_buffers" in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    (name,) = compat.without_buffer_sync()
    assert name in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters


def test_grouped_products_without_data_are_still_of_half_precision_alone():
    rows, offsets = torch.ones(4, 20), torch.tensor([1, 4], dtype=torch.int32)
    matrices = torch.ones(2, 20, 8)
    assert F.grouped_mm(rows, matrices, offs=offsets).shape == (4, 8)
    without_data = rows.to("meta"), matrices.to("meta")
    with pytest.raises(RuntimeError, match="Expected mat_a to be BFloat16"):
        F.grouped_mm(*without_data, offs=offsets.to("meta"))
    with compat.GroupedShapes():
        assert F.grouped_mm(*without_data, offs=offsets.to("meta")).shape == (4, 8)


class Stopped(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGSTOP)


def test_torch_still_leaves_a_worker_that_does_not_see_sigterm(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    batches = iter(torch.utils.data.DataLoader(Stopped(), num_workers=1, multiprocessing_context="fork"))
    (worker,) = batches._workers
    time.sleep(0.5)
    batches._shutdown_workers()
    assert worker.is_alive()
    compat.end_workers(batches)
    assert not worker.is_alive()


def test_fused_sgd_still_has_no_momentum_behind_a_skipped_first_step():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, fused=True)
    assert not compat.skips_on_device(optimizer) and optimizer._step_supports_amp_scaling
    made = []
    weight.grad, optimizer.found_inf = torch.ones(4), torch.ones(())
    with patch.object(torch, "empty_like", lambda like, **kwargs: made.append(like) or torch.full_like(like, 7.0)):
        optimizer.step()
    assert torch.equal(weight, torch.zeros(4))
    assert made and torch.equal(optimizer.state[weight]["momentum_buffer"], torch.full((4,), 7.0))


def test_fsdp_notes_forward_passes_without_a_backward_pass():
    """Remove `compat.forget_forward_passes` when this fails in its first assertion."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        for unit in (*model, model):
            fully_shard(unit, mesh=init_device_mesh("cpu", (1,)))
        with torch.no_grad():
            model(torch.ones(1, 2))
        notes = model._get_fsdp_state()._comm_ctx.post_forward_order
        assert len(notes) >= 2
        compat.forget_forward_passes(model)
        assert not notes
        model(torch.ones(1, 2)).sum().backward()
    finally:
        distributed.destroy_process_group()


def test_mlflow_refuses_a_folder_of_files(tmp_path):
    """MMEngine's default: `mlflow_place` is needed as long as this raises."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    with pytest.raises(mlflow.exceptions.MlflowException, match="maintenance mode"):
        mlflow.MlflowClient(f"file://{tmp_path}")


def test_mmengine_still_knows_only_the_configs_of_its_own_packages(tmp_path):
    from mmengine.config import Config

    file = tmp_path / "recipe.py"
    file.write_text("value = 1\n")
    (tmp_path / "own.py").write_text("_base_ = ['asvr::recipe.py']\n")
    with pytest.raises((AssertionError, ValueError, ImportError)):
        Config.fromfile(tmp_path / "own.py")
    with compat.bases_of_package("asvr", lambda name: tmp_path / name):
        assert Config.fromfile(tmp_path / "own.py").value == 1
    with pytest.raises((AssertionError, ValueError, ImportError)):
        Config.fromfile(tmp_path / "own.py")


def test_lmms_eval_reads_the_number_of_processes_from_the_environment():
    """Remove `compat.one_process_for_lmms_eval` when it no longer does."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None:
        pytest.skip("lmms-eval is not installed (pip install -e '.[eval]')")
    source = (Path(spec.origin).parent / "evaluator.py").read_text(encoding="utf-8")
    assert 'os.environ.get("WORLD_SIZE", 1)' in source


def test_the_environment_of_several_processes_comes_back(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError), compat.one_process_for_lmms_eval():
        assert "WORLD_SIZE" not in os.environ
        raise RuntimeError
    assert os.environ["WORLD_SIZE"] == "2" and "LOCAL_RANK" not in os.environ


def test_safetensors_still_writes_files_that_only_their_owner_reads(tmp_path):
    """Remove `compat.give_mode_of_new_files` when it no longer does."""
    before = os.umask(0o022)
    try:
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o600
        compat.give_mode_of_new_files(tmp_path / "a.safetensors")
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644
        assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
        write_folder(tmp_path / "b", weights=("b.safetensors", {"b": torch.ones(1)}), texts={})
        assert stat.S_IMODE((tmp_path / "b" / "b.safetensors").stat().st_mode) == 0o644
    finally:
        os.umask(before)
