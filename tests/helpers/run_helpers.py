"""Tiny runs of ``configs/asvr_mini.py`` that several test files look at."""

import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from asvr.commands.cli import run_tool

ROOT = Path(__file__).parents[2]

# Everything but the sizes is as in the config. The intervals have no common multiple before step 35, so that a
# checkpoint falls into the middle of a logging interval.
TINY = {
    "text_tokenizer.corpus.max_images": 12,
    "data.train.max_images": 12,
    "evaluation.dataset.max_images": 3,
    "model.encoder.image_size": 64,
    "model.llm.arch.hidden_size": 32,
    "model.llm.arch.intermediate_size": 48,
    "model.llm.arch.num_hidden_layers": 1,
    "model.reconstruction.0.tokenizer.codebook_size": 8,
    "model.reconstruction.0.head.width": 16,
    "data.micro_batch": 4,
    "data.global_batch": 8,
    "optim.lr": 2e-3,
    "schedule.steps": 60,
    "stages.blind.schedule.steps": 4,
    "stages.pretrain.schedule.steps": 40,
    "runtime.log_interval": 5,
    "runtime.checkpoint_interval": 7,
    "runtime.keep_checkpoints": 3,
}
STEPS = dict(blind=4, pretrain=40, finetune=60)


# The README's, by which a user sees a recipe's sizes.
DRY_RUN = ["tools/train.py", "configs/asvr_vicuna7b.py", "--dry-run"]

# A vision tower with 4 visual tokens.
SIGLIP = dict(
    model_type="siglip_vision_model",
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)


def tiny_command(work_dir: Path) -> list[str]:
    options = [f"{key}={value}" for key, value in TINY.items()]
    config = ROOT / "configs/asvr_mini.py"
    return [
        sys.executable,
        str(ROOT / "tools/train.py"),
        str(config),
        "--work-dir",
        str(work_dir),
        "--cfg-options",
        *options,
    ]


def tiny_env() -> dict:
    return dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


def call_tool(file: str, *arguments) -> subprocess.CompletedProcess:
    """What ``python FILE ARGUMENTS`` gives, in this process: starting torch in one of its own takes seconds."""
    command = [file, *map(str, arguments)]
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        chdir(ROOT),
        patch.object(sys, "argv", command),
        patch.dict(os.environ),  # what a tool sets is gone afterwards
        redirect_stdout(out),
        redirect_stderr(errors),
    ):
        try:
            run_tool(runpy.run_path(file)["main"])
        except SystemExit as end:  # Python prints a text and exits with 1
            code = 1 if isinstance(end.code, str) else end.code or 0
            print(end.code if isinstance(end.code, str) else "", file=errors)
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


def read_metrics(work_dir: Path) -> list[dict]:
    file = work_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []
