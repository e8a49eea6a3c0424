"""Data sets at the edge, and tiny runs on them with every setting of how samples are read.

``python edge_helpers.py``: all combinations in one process, one line each.
"""

import json
import sys
import time
from itertools import product
from pathlib import Path

import torch
from parallel_helpers import make_config, train
from run_helpers import read_metrics


def _talk(i: int, marks: int = 1) -> list[dict]:
    question, answer = "<image>\n" * marks + f"what is {i}?", f"word{i} word{i + 1}"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _with_picture(i: int) -> dict:
    return dict(id=i, image=f"{i % 9}.png", conversations=_talk(i))


# Each edge: its records. The step has 6 samples, the micro-batch 2.
EDGES = dict(
    plain=[_with_picture(i) for i in range(7)],
    no_image=[dict(id=i, conversations=_talk(i, 0)) for i in range(7)],
    no_text=[dict(id=i, image=f"{i}.png") for i in range(7)],
    one_record=[_with_picture(0)],
    one_text=[dict(id=0, conversations=_talk(0, 0))],
    fewer_than_a_batch=[_with_picture(i) for i in range(2)],
    everything_refused=[dict(id=i, image="no.png", conversations=_talk(i)) for i in range(7)],
    broken_pictures=[dict(id=i, image="cut.png", conversations=_talk(i)) for i in range(7)],
    one_good=[_with_picture(0), *[dict(id=i, image="cut.png", conversations=_talk(i)) for i in range(1, 7)]],
)
SETTINGS = dict(
    cache=[False, True, "codes"],
    how=[{}, dict(pack=True), dict(group="length"), dict(group="modality")],
    num_workers=[0, 2],
    targets=[True, False],
    on_error=["skip", "raise"],
)


def make_edges(folder: Path) -> Path:
    """The config of `parallel_helpers`, and a file of records for each edge."""
    config = make_config(folder)
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:40])
    for name, records in EDGES.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    return config


def options(folder: Path, edge: str, *, cache, how: dict, num_workers: int, targets: bool, on_error: str) -> dict:
    found = {
        "data.train": dict(_delete_=True, type="LlavaDataset", ann_file=str(folder / f"{edge}.json")),
        "data.cache": cache,
        "data.num_workers": num_workers,
        "data.on_error": on_error,
        "data.worker_timeout": 30,
        "evaluation": None,
        "schedule.steps": 2,
        "stages.pretrain.schedule.steps": 1,
    }
    found |= {f"data.{key}": value for key, value in how.items()}
    if not targets:
        found["model.reconstruction"] = []
        found["stages.pretrain.train"] = ["projector"]
        found["stages.finetune.train"] = ["projector", "llm"]
    elif cache is not True:  # a tokenizer that is fitted ahead
        tokenizer = dict(type="SemanticTokenizer", name=str(folder / "tokenizer"), depth=2, codebook_size=4)
        head = dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2)
        found["model.reconstruction"] = [dict(name="semantic", tokenizer=tokenizer, head=head, weight=0.5, shift=1)]
    return found


def fit_tokenizer(config: Path, folder: Path) -> None:
    from asvr.recipe.config import load_config
    from asvr.registry import ENCODERS, VISUAL_TOKENIZERS

    torch.manual_seed(0)
    encoder = ENCODERS.build(load_config(config).model.encoder)
    kind = dict(type="SemanticTokenizer", depth=2, codebook_size=4, encoder=encoder)
    tokenizer = VISUAL_TOKENIZERS.build(kind)
    tokenizer.fit([torch.randn(32, encoder.num_tokens, encoder.width)], progress=False)
    tokenizer.save_pretrained(folder / "tokenizer")


def outcome(config: Path, work_dir: Path, edge: str, settings: dict, more: dict | None = None) -> tuple[str, str]:
    """``trained`` and the losses, ``told`` and the line, or ``broken`` and what came. more: further options."""
    try:
        train(config, work_dir, options(config.parent, edge, **settings) | (more or {}))
    except (ValueError, SystemExit) as error:
        kind = type(error)
        line = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
        own = kind.__module__.startswith("asvr") or _raised_here(error)
        return "told" if own and "\n" not in line else "broken", line
    except Exception as error:
        return "broken", f"{type(error).__name__}: {error}"
    lines = read_metrics(work_dir)
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    good = steps == [1, 1, 2] and all(loss is not None and loss > 0 for loss in losses)
    return "trained" if good else "broken", f"steps {steps}, losses {losses}"


def _raised_here(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return "asvr" in Path(frame.tb_frame.f_code.co_filename).parts


if __name__ == "__main__":
    import logging
    import tempfile

    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    own = make_edges(root)
    fit_tokenizer(own, root)
    edges = sys.argv[1:] or EDGES
    for number, (edge, *values) in enumerate(product(edges, *SETTINGS.values())):
        settings, begin = dict(zip(SETTINGS, values, strict=True)), time.perf_counter()
        found, why = outcome(own, root / f"run{number}", edge, settings)
        logging.disable(logging.NOTSET)
        print(f"MATRIX {found:8} {time.perf_counter() - begin:5.1f}s {edge} {settings} {why[:400]}", flush=True)
