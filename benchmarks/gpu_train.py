"""The parts of ``benchmarks/gpu.py`` that train: a run that is killed and goes on, one in each parallel wrapper, and
one with each of Float8's recipes.

python benchmarks/gpu_train.py resume|wrappers|float8 --work DIR [--device cuda]

The last line of the output is ``FIGURES`` and a JSON object. The exit code is 1 if losses differ by more than
``--tolerance``. For ``float8`` these are the mean losses of the last quarter of the steps.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gpu_list import ROOT, end_with_parent

from asvr.commands.cli import run_tool

CONFIG = ROOT / "configs/benchmarks/gpu_small.py"
LOSSES = ("loss", "loss_text", "loss_semantic", "grad_norm")
TOWER = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=1"]
RECIPES = ("rowwise", "tensorwise")
FLOAT8 = """_base_ = [{config!r}]
stages = dict(finetune=dict(model_transforms=[
    dict(type="Float8", layers=["llm.*.layers"], recipe={recipe!r}, emulate={emulate})]))
"""
WRAPPERS = dict(DDP=["parallel.type=DDP"], FSDP2=["parallel.type=FSDP2"])
WRAPPERS["FSDP2_offloaded"] = [*WRAPPERS["FSDP2"], "parallel.cpu_offload=True"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("resume", "wrappers", "float8"))
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, for all that is written")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60, help="of the last stage")
    parser.add_argument("--precision", help="default: bf16 for resume and float8 on CUDA, else float32")
    parser.add_argument("--tolerance", type=float, default=0.01, help="largest relative difference of a loss")
    return parser.parse_args()


class Runs:
    """Training commands of one config, with the same seed."""

    def __init__(self, args: argparse.Namespace, precision: str):
        self.work, self.steps, self.device = args.work, args.steps, args.device
        self.options = [f"model.encoder.name={_tower(args.work / 'tower')}", f"runtime.device={args.device}"]
        self.options += [f"optim.precision={precision}", f"schedule.steps={args.steps}"]
        self.options += [f"stages.pretrain.schedule.steps={max(1, args.steps // 3)}"]
        self.options += [f"runtime.log_interval={max(1, args.steps // 12)}"]
        self.options += [f"runtime.checkpoint_interval={max(1, args.steps // 6)}"]
        self.options += [f"data.cache_dir={args.work / 'cache'}"]

    def start(self, name: str, *more: str, launcher: list[str] = (), config: Path = CONFIG) -> subprocess.Popen:
        command = [sys.executable, *launcher, str(ROOT / "tools/train.py"), str(config)]
        command += ["--work-dir", str(self.work / name), "--cfg-options", *self.options, *more]
        print("+", " ".join(command), flush=True)
        return subprocess.Popen(command, cwd=ROOT, preexec_fn=end_with_parent)

    def run(self, name: str, *more: str, **options) -> float:
        """Seconds that it took. Raises ``ValueError`` where it fails."""
        begin, code = time.perf_counter(), self.start(name, *more, **options).wait()
        if code != 0:
            raise ValueError(f"{name}: its training ended with exit code {code}; what it wrote stands above")
        return round(time.perf_counter() - begin, 1)

    def lines(self, name: str) -> dict[tuple, dict]:
        """By stage and step. A run that is under way may have half a line at the end."""
        file = self.work / name / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return {(line["stage"], line["step"]): line for line in found}

    def against(self, name: str, other: str) -> dict:
        """How far the losses of two runs are apart, at most, relative to one of them."""
        own, theirs = self.lines(name), self.lines(other)
        if not own or own.keys() != theirs.keys():
            raise ValueError(f"{name} logged the steps {list(own)}, {other} {list(theirs)}")
        keys = [(at, key) for at in own for key in LOSSES if key in own[at] or key in theirs[at]]
        gaps = {(*at, key): abs(own[at][key] - theirs[at][key]) / abs(theirs[at][key]) for at, key in keys}
        losses = {at: gap for at, gap in gaps.items() if at[-1] != "grad_norm"}
        return dict(
            lines=len(own),
            largest_difference=max(losses.values()),
            where=list(max(losses, key=losses.get)),
            largest_difference_of_grad_norm=max(gap for at, gap in gaps.items() if at[-1] == "grad_norm"),
        )


def _tower(folder: Path) -> Path:
    """A vision tower with random weights, the same for all runs."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model("siglip_vision_model", image_size=64, patch_size=16, **TOWER)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def resume(runs: Runs) -> dict:
    """SIGKILL in the middle of the last stage, behind a checkpoint; the same command goes on to the end."""
    seconds = runs.run("whole")
    process, killed_at = runs.start("killed"), None
    while process.poll() is None:
        step = max((step for stage, step in runs.lines("killed") if stage == "finetune"), default=0)
        if step >= runs.steps // 2 and any(runs.work.glob("killed/finetune/checkpoints/step_*")):
            process.send_signal(signal.SIGKILL)
            killed_at = step
            break
        time.sleep(0.01)
    code = process.wait()
    if code != -signal.SIGKILL:
        raise ValueError(f"killed: ended with exit code {code} before it could be killed")
    runs.run("killed")
    return dict(runs.against("killed", "whole"), killed_at_step=killed_at, of_steps=runs.steps, seconds_whole=seconds)


def wrappers(runs: Runs) -> dict:
    """DDP, FSDP2 and FSDP2 with `cpu_offload`, each with one process of torchrun, against no wrapper.

    NCCL on CUDA, gloo on the CPU."""
    runs.run("plain")
    found = {}
    for name, options in WRAPPERS.items():
        runs.run(name, *options, launcher=TORCHRUN)
        found[name] = runs.against(name, "plain")
    return dict(found, largest_difference=max(one["largest_difference"] for one in found.values()))


def float8(runs: Runs) -> dict:
    """The same run in full precision and with products of the LLM's blocks in 8 bits. On the CPU they are emulated.

    Rows are not packed, since the recipe tensorwise does not work with packed rows."""
    runs.options.append("data.pack=False")
    emulate, last = runs.device == "cpu", runs.steps - runs.steps // 4
    found = {}
    for name in ("full", *RECIPES):
        config = CONFIG
        if name != "full":
            config = runs.work / f"{name}.py"
            config.write_text(FLOAT8.format(config=str(CONFIG), recipe=name, emulate=emulate), encoding="utf-8")
        seconds = runs.run(name, config=config)
        losses = [
            line["loss"] for (stage, step), line in runs.lines(name).items() if stage == "finetune" and step > last
        ]
        found[name] = dict(loss=round(statistics.mean(losses), 5), seconds=seconds)
    for name in RECIPES:
        found[name]["difference"] = found[name]["loss"] / found["full"]["loss"] - 1
    first = next(line["loss"] for (stage, _), line in runs.lines("full").items() if stage == "finetune")
    largest = max(abs(found[name]["difference"]) for name in RECIPES)
    return dict(found, first_loss=first, of_steps=runs.steps, emulated=emulate, largest_difference=largest)


def main() -> None:
    args = parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    on_cuda = args.device.startswith("cuda")
    runs = Runs(args, args.precision or ("bf16" if args.part != "wrappers" and on_cuda else "float32"))
    figures = dict(resume=resume, wrappers=wrappers, float8=float8)[args.part](runs)
    figures |= dict(device=args.device, tolerance=args.tolerance)
    print("FIGURES", json.dumps(figures), flush=True)
    if not figures["largest_difference"] <= args.tolerance:  # a NaN is not
        sys.exit(f"error: losses differ by {figures['largest_difference']:.2e}, more than {args.tolerance}")


if __name__ == "__main__":
    run_tool(main)
