"""A tiny study: two arms, two seeds. `write_finished` makes one without training."""

import json
import subprocess
from pathlib import Path
from unittest.mock import patch

import numpy as np
from run_helpers import ROOT, call_tool

from asvr.studies import run as engine_study

BASE = """
_base_ = ['{root}/configs/asvr_mini.py']
text_tokenizer = dict(vocab_size=300, corpus=dict(_delete_=True, type='Scenes', scenes=10, captions=True))
model = dict(
    encoder=dict(image_size=64),
    llm=dict(arch=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1)),
    reconstruction=[dict(
        name='semantic',
        tokenizer=dict(type='SemanticTokenizer', depth=2, codebook_size=8),
        fit=dict(vectors_per_code=8, iterations=2),
        head=dict(type='DepthTransformerHead', width=16, layers=1, num_heads=4),
        weight=0.3, shift=1)])
data = dict(train=dict(_delete_=True, type='Scenes', scenes=20, size=64), micro_batch=4, global_batch=8)
schedule = dict(steps=3)
stages = dict(
    _delete_=True,
    pretrain=dict(init='scratch', train=['projector', 'heads', 'llm'], evaluation=None),
    finetune=dict(train=['projector', 'heads', 'llm']))
evaluation = dict(dataset=dict(_delete_=True, type='Scenes', split='test', scenes=6, per_scene=None, size=64,
    kinds=['what', 'kind', 'count', 'word', 'knowledge', 'where', 'left_of', 'larger', 'color', 'pose', 'exists']))
runtime = dict(log_interval=1, device='cpu')
"""
STUDY = """
config = 'base.py'
seeds = [0, 1]
baseline = 'none'
compare = [('none', 'late')]
groups = dict(general=['what', 'kind', 'count'], ocr=['word'])
_semantic = dict(
    name='semantic',
    tokenizer=dict(type='SemanticTokenizer', depth=2, codebook_size=8),
    fit=dict(vectors_per_code=8, iterations=2),
    head=dict(type='DepthTransformerHead', width=16, layers=1, num_heads=4),
    weight=0.3, shift=1)
arms = dict(
    none=dict(model=dict(reconstruction=[])),
    late=dict(stages=dict(pretrain=dict(model=dict(reconstruction=[dict(_semantic, weight=0.0)])))))
"""


class Here:
    """Does the work of `Processes` in this process: starting one for every run takes seconds."""

    def __init__(self):
        self.done: list[tuple] = []

    def __len__(self) -> int:
        return len(self.done)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def start(self, key, work, *args) -> None:
        self.done.append((key, work(*args)))

    def ended(self, timeout=None) -> list[tuple]:
        done, self.done = self.done, []
        return done


def run(folder, *arguments, processes: type = Here) -> subprocess.CompletedProcess:
    with patch.object(engine_study, "Processes", processes):
        return call_tool("tools/study.py", folder / "study.py", "--out", folder / "out", *arguments)


def write_files(folder: Path, more: str = "") -> Path:
    """The study's file and its config. more: further lines of the study."""
    (folder / "base.py").write_text(BASE.format(root=ROOT))
    (folder / "study.py").write_text(STUDY + more + "\n")
    return folder / "study.py"


def write_finished(folder: Path) -> None:
    """The study with the files that its finished runs would have, for a report."""
    write_files(folder)
    kinds = [("what", 12), ("kind", 12), ("count", 12), ("word", 6), ("where", 6)]
    asked = [(kind, number % 6) for kind, count in kinds for number in range(count)]
    for number, arm in enumerate(("none", "late")):
        for seed in (0, 1):
            work_dir, drawn = folder / f"out/{arm}/seed_{seed}", np.random.default_rng([number, seed])
            answers = [
                dict(
                    id=i,
                    image=f"{scene}.png",
                    kind=kind,
                    question=str(i),
                    expected="a",
                    right=bool(drawn.random() < 0.5),
                )
                for i, (kind, scene) in enumerate(asked)
            ]
            lines = [
                dict(stage="finetune", step=i, loss_text=float(drawn.random()), acc_semantic=[0.5]) for i in (1, 2)
            ]
            result = dict(
                finetune=dict(codes=dict(semantic=[0.5, 0.25]), losses=dict(text=1.5), accuracy=0.5, total=48)
            )
            for stage in ("pretrain", "finetune"):
                (work_dir / stage).mkdir(parents=True)
                (work_dir / stage / "done.json").write_text(json.dumps(dict(steps=3, seconds=2.5)))
            (work_dir / "finetune/answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
            (work_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (work_dir / "results.json").write_text(json.dumps(result))
