"""Tiny runs in several processes, and the same in one.

``python parallel_helpers.py JOB RANK``: one process of a job, a JSON list of runs one after another.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from run_helpers import ROOT, SIGLIP, read_metrics
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from asvr.data.samplers import ResumableSampler
from asvr.recipe.config import load_config

RECORDS, GLOBAL_BATCH, STEPS = 23, 6, 4
# With sizes that 4 processes do not share evenly.
LLAMA = dict(
    model_type="llama",
    vocab_size=310,
    hidden_size=16,
    intermediate_size=22,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
CONFIG = """
text_tokenizer = dict(type='ByteLevelBPE', vocab_size=300, corpus=dict(type='LlavaDataset', ann_file={rows!r}))
model = dict(
    type='VLM',
    encoder=dict(type='HFVisionEncoder', name={tower!r}),
    projector=dict(type='MLPProjector'),
    llm=dict(type='HFCausalLM', name={llm!r}),
    reconstruction=[dict(
        name='semantic',
        tokenizer=dict(type='SemanticTokenizer', depth=2, codebook_size=4),
        fit=dict(vectors_per_code=8, iterations=2),
        head=dict(type='DepthTransformerHead', width=8, layers=1, num_heads=2),
        weight=0.5,
        shift=1)])
data = dict(
    train=dict(type='LlavaDataset', ann_file={rows!r}), template=dict(type='vicuna_v1', system=''), max_length=64,
    image_aspect='square',
    on_error='raise', cache=True, micro_batch=2, global_batch={batch}, num_workers=0)
optim = dict(type='AdamW', lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, clip_grad=1.0, precision='float32')
schedule = dict(steps={steps}, warmup_ratio=0.0)
stages = dict(
    pretrain=dict(train=['projector', 'heads'], schedule=dict(steps=2), evaluation=None),
    finetune=dict(train=['projector', 'heads', 'llm']))
evaluation = dict(dataset=dict(type='LlavaDataset', ann_file={questions!r}), batch_size=2, max_new_tokens=2,
    num_examples=0)
runtime = dict(seed=0, device='cpu', log_interval=1, checkpoint_interval=2, keep_checkpoints=5)
"""


def make_config(folder: Path, positions: int = 64) -> Path:
    """A config with its data: rows with one, two and no images, and images without text. positions: of the LLM."""
    for i in range(9):
        Image.new("RGB", (8 + i, 9), (25 * i, 255 - 25 * i, 90)).save(folder / f"{i}.png")
    rows = [_record(i) for i in range(RECORDS)]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "questions.json").write_text(json.dumps([row for row in rows if "conversations" in row][:5]))
    config = CONFIG.format(
        rows=str(folder / "rows.json"),
        questions=str(folder / "questions.json"),
        tower=str(_pretrained(folder / "tower", AutoModel, SIGLIP)),
        llm=str(_pretrained(folder / "llm", AutoModelForCausalLM, dict(LLAMA, max_position_embeddings=positions))),
        batch=GLOBAL_BATCH,
        steps=STEPS,
    )
    (folder / "config.py").write_text(config)
    return folder / "config.py"


def _images_of(i: int) -> int:
    return {0: 1, 1: 2, 3: 1}.get(i % 8, 0)


def _record(i: int) -> dict:
    images = [(i + 4 * n) % 9 for n in range(_images_of(i))]
    if i % 8 == 3:
        return dict(id=i, image=f"{images[0]}.png")  # an image without text
    question = "<image>\n" * len(images) + f"what is {i}?"
    answer = " ".join(f"word{(i * k) % 7}" for k in range(1, 2 + i % 4))
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return dict(id=i, conversations=turns) | (dict(image=[f"{n}.png" for n in images]) if images else {})


def _pretrained(folder: Path, kind, arch: dict) -> Path:
    torch.manual_seed(0)
    sizes = {key: value for key, value in arch.items() if key != "model_type"}
    kind.from_config(AutoConfig.for_model(arch["model_type"], **sizes)).save_pretrained(folder)
    return folder


def interrupted(finished: Path, copy: Path) -> Path:
    """A copy that looks as if the last stage had been killed behind its second step."""
    shutil.copytree(finished, copy)
    (copy / "finetune" / "done.json").unlink()
    shutil.rmtree(copy / "finetune" / "checkpoints" / f"step_{STEPS:08d}")
    return copy


def images_of_steps(world: int) -> list[list[int]]:
    """Pictures of each process in each step of the first epoch."""
    order = ResumableSampler(length=RECORDS, seed=0).order(0).tolist()
    counts = [_images_of(i) for i in order]
    whole = range(0, RECORDS - GLOBAL_BATCH, GLOBAL_BATCH)
    return [[sum(counts[begin : begin + GLOBAL_BATCH][rank::world]) for rank in range(world)] for begin in whole]


def train(config: Path, work_dir: Path, options: dict, **kwargs) -> dict:
    from asvr.engine.run import run

    with (
        patch("asvr.engine.runner.step_flops", lambda stage: None),
        patch("asvr.engine.run.draw_summary", lambda work_dir, results: None),
    ):
        return run(load_config(config, options), work_dir, **kwargs)


def launch(folder: Path, runs: list[dict], world: int, seconds: int = 300) -> None:
    """``runs``, arguments of `train`, in ``world`` processes as torchrun starts them.

    A run with ``copy_of`` goes on in an `interrupted` copy of that finished run."""
    job = folder / f"job_{time.time_ns()}.json"
    job.write_text(json.dumps([dict(one, port=port) for one, port in zip(runs, _free_ports(len(runs)), strict=True)]))
    env = dict(os.environ, OMP_NUM_THREADS="1", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1")
    processes = []
    for rank in range(world):
        with open(job.with_suffix(f".{rank}.out"), "w") as out:
            command = [sys.executable, __file__, str(job)]
            own = dict(env, RANK=str(rank), LOCAL_RANK=str(rank))
            processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=out, stderr=out))
    try:
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):  # one has failed: torchrun stops the others
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
        said = [
            f"--- {rank}: {code}\n" + job.with_suffix(f".{rank}.out").read_text() for rank, code in enumerate(codes)
        ]
        assert codes == [0] * world, "\n".join(text[-4000:] for text in said)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    """One a run: a process that joins others again must not meet the place where it met them before.

    Below the ports that the system gives to sockets without one, as gloo's: a later run's would be taken by then.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(15000, 32000), 1000):
        with socket.socket() as one:
            try:
                one.bind(("", port))
            except OSError:  # somebody has it
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} ports are free")


def held(work_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    """The weights in the last checkpoint of a stage."""
    return load_file(sorted((work_dir / stage / "checkpoints").glob("step_*"))[-1] / "model.safetensors")


def losses(work_dir: Path) -> list[dict]:
    keys = ("loss", "loss_text", "loss_semantic", "acc_text", "acc_semantic", "grad_norm", "stage", "step")
    return [{key: line[key] for key in keys if key in line} for line in read_metrics(work_dir)]


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"], work_dir = str(one.pop("port")), Path(one.pop("work_dir"))
        finished = one.pop("copy_of", None)
        if finished is not None and os.environ["RANK"] == "0":  # the others wait for it where they meet
            interrupted(Path(finished), work_dir)
        train(Path(one.pop("config")), work_dir, one.pop("options"), **one)
