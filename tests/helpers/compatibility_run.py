"""What happens to a cell of the compatibility matrix: it works, or it is refused with a message."""

import json
import logging
import math
import shutil
from pathlib import Path
from unittest.mock import patch

from compatibility_cells import Files, config_of
from mmengine.config import Config
from PIL import Image

import asvr
from asvr.engine.run import run
from asvr.interchange.export import export_llava

WORKS = "works"


def outcome(cell: dict[str, str], files: Files) -> str:
    """``works``, or the message of the ``ValueError`` that a user gets. Whatever else is raised is a fault."""
    work_dir = files.folder / "run"
    shutil.rmtree(work_dir, ignore_errors=True)
    cfg = config_of(cell, files)
    try:
        _train(cfg, work_dir)
        _export(cell["export"], work_dir)
    except ValueError as error:
        return told(error, files.folder)
    finally:
        logging.disable(logging.NOTSET)
    return WORKS


def told(error: ValueError, folder: Path) -> str:
    """Its message in one line, with FOLDER for the place of this machine's files."""
    return " ".join(str(error).replace(str(folder), "FOLDER").split())


def _train(cfg: Config, work_dir: Path) -> None:
    logging.disable(logging.WARNING)
    with (
        patch("asvr.engine.runner.step_flops", lambda stage: None),
        patch("asvr.engine.run.draw_summary", lambda work_dir, results: None),
    ):
        run(cfg, work_dir)
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    names = {"loss", "loss_text"} | {f"loss_{entry.name}" for entry in cfg.model.reconstruction}
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line[name]) for line in lines for name in names), lines


def _export(kind: str, work_dir: Path) -> None:
    """Into a folder, which answers as the run's model does."""
    image = Image.new("RGB", (20, 16), (200, 30, 90))
    source = asvr.load(work_dir, device="cpu")
    answer = source.chat(image, "what is it?", max_new_tokens=2)
    if kind == "LLaVA folder":
        export_llava(source, work_dir / "llava")
        return
    again = asvr.load(source.save_pretrained(work_dir / "folder"), device="cpu", trust_custom_imports=True)
    assert again.chat(image, "what is it?", max_new_tokens=2) == answer
