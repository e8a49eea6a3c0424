"""Nothing of ours runs foreign code or asks the network unless the user says so; docs/safety.md tells what may."""

import ast
import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from run_helpers import DRY_RUN, ROOT, TINY, call_tool
from transformers import AutoModelForCausalLM

from asvr.models.encoders.timm import TimmEncoder
from asvr.models.hf import load_strict, read_config
from asvr.registry import ENCODERS, LLMS, TEXT_TOKENIZERS

SOURCES = [file for part in ("asvr", "tools", "benchmarks") for file in sorted((ROOT / part).rglob("*.py"))]
# Calls that run what they are given, whatever it is; and those that start a program, of which the library has one.
FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "marshal.loads", "joblib.load"}
STARTS = {"subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"}
MAY_START = "asvr/profiling/throughput.py"
REQUIRED = {  # what a call of this name must say
    "torch.load": dict(weights_only=True),
    "AutoConfig.from_pretrained": dict(trust_remote_code=False, local_files_only=True),
    "AutoTokenizer.from_pretrained": dict(trust_remote_code=False, local_files_only=True),
    "auto_class.from_pretrained": dict(trust_remote_code=False, local_files_only=True),
}
UNSAFE = dict(weights_only=False, trust_remote_code=True, allow_pickle=True, shell=True)


def calls(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), given, f"{file.relative_to(ROOT)}:{node.lineno}"


def test_no_call_runs_what_it_reads():
    seen = set()
    for file in SOURCES:
        for name, given, place in calls(file):
            assert name not in FORBIDDEN, place
            assert not any(given.get(key) is value for key, value in UNSAFE.items()), place
            assert name not in STARTS or place.startswith((MAY_START, "benchmarks/")), place
            if name in REQUIRED:
                seen.add(name)
                assert REQUIRED[name].items() <= given.items(), place
    assert seen == set(REQUIRED)  # a name that nobody calls any more would test nothing


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A model's folder whose code and pickles leave a file behind when they run."""
    monkeypatch.chdir(tmp_path)
    code = "import pathlib\npathlib.Path('ran').touch()\nclass Any: pass\n"
    (tmp_path / "code.py").write_text(code)
    own = dict(AutoConfig="code.Any", AutoModel="code.Any", AutoModelForCausalLM="code.Any")
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="its-own", auto_map=own)))
    tokenizer = dict(tokenizer_class="ItsOwn", auto_map=dict(AutoTokenizer=["code.Any", None]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    yield tmp_path
    assert not (tmp_path / "ran").exists()


def test_code_in_a_models_folder_is_never_run(foreign):
    for build in (
        lambda: LLMS.build(dict(type="HFCausalLM", name=str(foreign)), default_args=dict(vocab_size=9)),
        lambda: ENCODERS.build(dict(type="HFVisionEncoder", name=str(foreign))),
    ):
        with pytest.raises(ValueError, match="Python code in that folder, which is never run here .trust_remote_code"):
            build()
    with pytest.raises(ValueError, match="Python code from the model's folder, which is never run here"):
        TEXT_TOKENIZERS.build(dict(type="HFTokenizer", name=str(foreign)))


def test_a_pickle_that_holds_more_than_tensors_is_never_loaded(foreign):
    arch = dict(model_type="llama", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    (foreign / "config.json").write_text(json.dumps(arch | dict(vocab_size=9)))
    torch.save(dict(a=Evil()), foreign / "pytorch_model.bin")
    told = "holds more than tensors and plain values.*could run code and is not loaded"
    with pytest.raises(ValueError, match=told):
        load_strict(AutoModelForCausalLM, foreign, read_config(foreign, None, None), torch.float32)
    with pytest.raises(ValueError, match=told):
        TimmEncoder(model="tf_efficientnet_lite0", weights=str(foreign / "pytorch_model.bin"))
    with pytest.raises(pickle.UnpicklingError):  # and it would have run: this is what the tests above keep out
        torch.load(foreign / "pytorch_model.bin", weights_only=True)


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine, or to look up its name, is an error that no library can swallow."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError(f"this test has no network: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not asked


def test_missing_models_are_told_without_the_network(no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    done = call_tool("tools/train.py", "configs/asvr_vicuna7b.py", "--work-dir", tmp_path / "run")
    assert done.returncode == 1 and "pretrained models are missing" in done.stderr
    assert call_tool(*DRY_RUN).returncode == 0


def test_a_run_and_its_answers_need_no_network(no_network, tmp_path):
    short = TINY | {"stages.pretrain.schedule.steps": 2, "schedule.steps": 2, "stages.blind.schedule.steps": 1}
    options = [f"{key}={value}" for key, value in short.items()]
    done = call_tool(
        "tools/train.py", "configs/asvr_mini.py", "--work-dir", tmp_path / "run", "--cfg-options", *options
    )
    assert done.returncode == 0, done.stderr
    import asvr

    assert isinstance(asvr.load(tmp_path / "run").chat(None, "is it red?", max_new_tokens=2), str)


def test_what_a_run_writes_can_be_read_without_running_it(tiny_run):
    """Weights are safetensors, everything else is JSON, text, images, arrays, or what ``weights_only`` loads."""
    safe = {".safetensors", ".json", ".jsonl", ".log", ".png", ".npy", ".py", ".jinja"}
    rest = [file for file in tiny_run.rglob("*") if file.is_file() and file.suffix not in safe]
    assert {file.suffix for file in rest} <= {".pt", ".txt"}, rest
    for file in rest:
        if file.suffix == ".pt":
            torch.load(file, weights_only=True)


def test_the_document_on_safety_names_what_can_run_code():
    text = (ROOT / "docs/safety.md").read_text()
    for name in ("custom_imports", "trust_custom_imports", "trust_remote_code", "ASVR_DOWNLOAD", "127.0.0.1"):
        assert name in text
    assert "docs/safety.md" in (ROOT / "README.md").read_text()
