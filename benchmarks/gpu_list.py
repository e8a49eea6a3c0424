"""What ``benchmarks/gpu.py`` runs, in order of worth, and how the figures of each part are read."""

import ctypes
import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FINETUNE_GIB = 130  # of the 7B finetune step; a smaller card gets a quarter of the LLM's blocks
ASVR, LLAVA = "configs/benchmarks/vicuna7b_asvr.py", "configs/benchmarks/vicuna7b_llava.py"
ONE_CARD = "configs/asvr_vicuna7b_80gb.py"  # the whole LLM is trained
ONE_CARD_GIB = 75  # the plan says 74.0e9 bytes
LLAVA_FP8 = "configs/benchmarks/vicuna7b_llava_fp8.py"
AUTO = "model.llm.activation_checkpointing=auto"
REQUIRED = ("torch", "transformers", "timm", "mmengine", "fvcore")
OPTIONAL = ("pytest", "xformers", "torchao")
# The tests' tiny sizes of configs/benchmarks/small_asvr.py.
TINY = """model.encoder.arch.hidden_size=16 model.encoder.arch.intermediate_size=24
model.encoder.arch.num_hidden_layers=8 model.encoder.arch.num_attention_heads=2 model.encoder.arch.image_size=56
model.llm.arch.hidden_size=32 model.llm.arch.intermediate_size=48 model.llm.arch.num_hidden_layers=2
model.llm.arch.num_attention_heads=2 model.llm.arch.vocab_size=64 data.max_length=320 runtime.device=cpu""".split()
TINY_TARGET = """model.reconstruction.0.tokenizer.codebook_size=16 model.reconstruction.0.head.width=16
model.reconstruction.0.head.num_heads=2""".split()


@dataclass
class Part:
    """command: what follows ``python``. least, most: seconds without which it is not begun, and that it may take.
    figures: of what it printed. why_not: a reason not to run it. timed: it measures time, and runs alone."""

    name: str
    shows: str
    command: list[str]
    least: float
    most: float
    figures: Callable[[str], dict] = lambda text: {}
    why_not: str | None = None
    timed: bool = False
    state: str = "waiting"
    result: dict = field(default_factory=dict)


def parts_of(device: str, machine: dict, work: Path) -> list[Part]:
    """In order of worth."""
    cuda = device == "cuda"
    tests = sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in read(f))
    pytest = ["-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "-rs", "-m", "gpu", *tests]
    no_tests = None if cuda else "these tests need CUDA"
    if cuda and "pytest" not in machine["packages"]:
        no_tests = "pytest cannot be imported: put its wheel into --wheels"
    trained = ["benchmarks/gpu_train.py", "--device", device, "--steps", "60" if cuda else "10"]
    backend = "NCCL" if cuda else "gloo, in place of NCCL, which needs CUDA"
    attention = ["benchmarks/attention.py", "--device", device, "--out", str(work / "attention")]
    attention += ["--dtype", "bfloat16", "--heads", "32", "--width", "128"] if cuda else ["--samples", "2"]
    attention += [] if cuda else ["--heads", "4", "--width", "8", "--rounds", "1"]
    found = [
        Part("gpu_tests", "the tests marked gpu", pytest, 30, 150, _closing_line, why_not=no_tests),
        Part(
            *("resume", "a run that is killed by SIGKILL and goes on, against one that nobody touched"),
            [*trained, "resume", "--work", str(work / "resume")],
            *(30, 180, own_figures),
        ),
        Part(
            *("wrappers", f"DDP and FSDP2 with one process, against none ({backend})"),
            [*trained, "wrappers", "--work", str(work / "wrappers")],
            *(30, 180, own_figures),
        ),
        *(_step(stage, cuda, machine, work) for stage in ("finetune", "pretrain")),
        Part("attention", "attention kernels", attention, 15, 150, _attention(work), timed=True),
        *_pairs(cuda, machine, work),
        _float8_losses(device, cuda, machine, work),
        _one_card(cuda, machine, work),
    ]
    for part in found:
        if cuda and "gpu" not in machine:
            part.why_not = "torch finds no CUDA device"
        missing = [f"{name} ({machine['problems'][name]})" for name in REQUIRED if name in machine["problems"]]
        if missing:
            part.why_not = f"cannot be imported: {', '.join(missing)}; put wheels into --wheels"
    return found


def _step(stage: str, cuda: bool, machine: dict, work: Path) -> Part:
    """A training step of ASVR, of LLaVA, and as the released code does it."""
    out = ["--stage", stage, "--rounds", "1", "--out", str(work / stage)]
    shows = f"a {stage} step of ASVR, LLaVA and the released way: time and peak memory"
    if not cuda:
        command = ["configs/benchmarks/small_asvr.py", "--plain", "--samples", "2", *out]
        return Part(f"{stage}_step", shows, _throughput(command, [*TINY, *TINY_TARGET]), 10, 90, _turns, timed=True)
    options = []
    if stage == "finetune" and machine.get("gib", 0) < FINETUNE_GIB:
        options = ["model.llm.arch.num_hidden_layers=8"]
        shows += f"; 8 of the LLM's 32 blocks, since the whole takes about {FINETUNE_GIB} GiB"
    command = [ASVR, "--against", LLAVA, "--plain", "--samples", "32", *out]
    command += ["--other-options", "model.llm.activation_checkpointing=full"]
    return Part(f"7b_{stage}_step", shows, _throughput(command, options), 90, 330, _turns, timed=True)


def _pairs(cuda: bool, machine: dict, work: Path) -> list[Part]:
    """A finetune step of LLaVA in 8 bits against bf16, and one that recomputes only what the memory requires."""
    out = ["--stage", "finetune", "--rounds", "1", "--samples", "32" if cuda else "2", "--out"]
    if not cuda:
        small, options = "configs/benchmarks/small_asvr.py", [*TINY, *TINY_TARGET]
        full = "model.llm.activation_checkpointing=full"
        command = [small, "--against", small, "--other-options", full, *out, str(work / "auto")]
        shows = "a step with automatic activation checkpointing, and one that recomputes the whole LLM"
        return [Part("auto_step", shows, _throughput(command, options), 10, 90, _turns, timed=True)]
    options = ["model.llm.arch.num_hidden_layers=8"] if machine.get("gib", 0) < FINETUNE_GIB else []
    fp8 = [LLAVA, "--against", LLAVA_FP8, *out, str(work / "fp8")]
    auto = [ASVR, "--against", ASVR, "--other-options", AUTO, *out, str(work / "auto")]
    return [
        Part(
            *("7b_fp8_step", "a finetune step of LLaVA in bf16, and with products of the LLM's blocks in FP8"),
            _throughput(fp8, options),
            *(60, 150, _turns, _no_torchao(machine), True),
        ),
        Part(
            *("7b_auto_step", "a finetune step of ASVR with selective, and with automatic activation checkpointing"),
            _throughput(auto, options),
            *(60, 150, _turns, None, True),
        ),
    ]


def _no_torchao(machine: dict) -> str | None:
    return None if "torchao" in machine["packages"] else "torchao cannot be imported: put its wheel into --wheels"


def _float8_losses(device: str, cuda: bool, machine: dict, work: Path) -> Part:
    """Some hundred steps of a small model with FP8 products, against the same steps in bf16."""
    command = ["benchmarks/gpu_train.py", "--device", device, "--steps", "300" if cuda else "8"]
    command += ["--tolerance", "0.02" if cuda else "0.05", "float8", "--work", str(work / "float8")]
    shows = "losses of a small model with FP8 products, against the same steps without"
    return Part("float8_losses", shows, command, 45, 150, own_figures, _no_torchao(machine))


def _one_card(cuda: bool, machine: dict, work: Path) -> Part:
    """The peak memory of the 7B finetune step that is made for a card of 80 GB, against its plan."""
    command = ["benchmarks/memory.py", ONE_CARD if cuda else "configs/benchmarks/small_asvr.py"]
    command += ["--stages", "finetune", "--modes", "full", "--out", str(work / "memory")]
    if not cuda:
        options = [*TINY, *TINY_TARGET, "optim.moments=bfloat16"]
        command += ["--rows", "1", "--tokens", "320", "--cfg-options", *options]
        return Part("one_card", "peak memory against the plan", command, 10, 90, _memory(work))
    why_not = _no_torchao(machine)
    if machine.get("gib", 0) < ONE_CARD_GIB:
        why_not = f"the step takes about {ONE_CARD_GIB - 5} GiB"
    command += ["--rows", "2", "--tokens", "2048"]
    shows = "peak memory of the 7B finetune step for one card of 80 GB, against its plan"
    return Part("7b_one_card", shows, command, 60, 240, _memory(work), why_not, timed=True)


def _throughput(command: list[str], options: list[str]) -> list[str]:
    return ["benchmarks/throughput.py", *command, *(["--cfg-options", *options] if options else [])]


def own_figures(text: str) -> dict:
    lines = [line for line in text.splitlines() if line.startswith("FIGURES ")]
    return json.loads(lines[-1].removeprefix("FIGURES ")) if lines else {}


def _closing_line(text: str) -> dict:
    found = re.findall(r"^=*\s*(\d+ (?:passed|failed|skipped|error).*? in [\d.:]+s.*?)\s*=*$", text, re.MULTILINE)
    return dict(tests=found[-1]) if found else {}


def _turns(text: str) -> dict:
    """Peak memory of each side, and its time over the first one's, of what was measured until the end."""
    tries = [_sides(part) for part in text.split("out of memory; trying")]  # each with fewer samples a step
    found = max(reversed(tries), key=len)
    first, *others = found or [None]
    times = {f"{name} / {first}": round(found[name]["seconds"] / found[first]["seconds"], 3) for name in others}
    return dict(time_ratio=times, peak_gib={name: side.get("peak_gib") for name, side in found.items()})


def _sides(text: str) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name, seconds, peak in re.findall(r"round 1/1, (.+): (\S+) s(?:, peak (\S+) GiB)?$", text, re.MULTILINE):
        found.setdefault(name, {}).update(dict(seconds=float(seconds)) | (dict(peak_gib=float(peak)) if peak else {}))
    return found


def _attention(work: Path) -> Callable[[str], dict]:
    def figures(text: str) -> dict:
        file = work / "attention.json"
        rows = json.loads(read(file))["rows"] if file.is_file() else []
        return {
            f"{row['part']}, {row['kernel']}, {row['heads']}/{row['key_heads']} heads": f"{row['speedup']:.2f} x"
            for row in rows
        }

    return figures


def _memory(work: Path) -> Callable[[str], dict]:
    def figures(text: str) -> dict:
        file = work / "memory.json"
        rows = json.loads(read(file))["rows"] if file.is_file() else []
        return {
            f"{row['stage']}, {row['rows']} rows": dict(
                planned_gb=float(f"{row['planned'] / 1e9:.4g}"),
                peak_gb=float(f"{row['measured'] / 1e9:.4g}"),
                ratio=round(row["measured"] / row["planned"], 3),
            )
            for row in rows
        }

    return figures


def end_with_parent() -> None:
    """For a process that is to be started, on Linux: that it ends where its parent is killed, and leaves the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
