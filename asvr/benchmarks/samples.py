"""The questions of lmms-eval's tasks with a model's answers, as files."""

import json
from pathlib import Path


def write_samples(samples: dict[str, list[dict]], folder: Path) -> None:
    """Write ``<folder>/<task>.jsonl`` in the order of the questions. samples: a part of lmms-eval's results."""
    from lmms_eval.utils import handle_non_serializable

    folder.mkdir(parents=True, exist_ok=True)
    for task, own in samples.items():
        rows = sorted(own, key=lambda sample: sample["doc_id"])
        lines = [json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
