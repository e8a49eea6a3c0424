"""What a start costs on millions of records: seconds of the first indexing and of a later opening, resident memory, and
random reads a second.

python benchmarks/data_scale.py [--records 5000000]

The records are synthetic, JSON lines in LLaVA's form in a temporary folder. Each measurement is a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from asvr.commands.cli import run_tool

WORDS = "the a red blue small house stands on hill under tree what color is it of how many are there two dogs".split()
WAIT = 3  # seconds: of a file that was just written nothing is kept


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--reads", type=int, default=100_000, help="records read in the sampler's order")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # a process that measures one opening
    return parser.parse_args()


def write(file: Path, records: int) -> None:
    """Conversations of one to four turns, of which one record in eight has no image."""
    import random

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 25))) for _ in range(4096)]
    with open(file, "w", buffering=1 << 22, encoding="utf-8") as out:
        for i in range(records):
            turns = rng.randint(1, 4)
            messages = [{"from": role, "value": rng.choice(texts)} for _ in range(turns) for role in ("human", "gpt")]
            record = dict(id=i, conversations=messages)
            if i % 8:
                record["image"] = f"{i % 1000:03d}/{i:09d}.jpg"
            out.write(json.dumps(record) + "\n")


def measure(file: Path, reads: int) -> dict:
    """One opening, its fingerprint, the first sample of the order at a late position, and reads in that order."""
    import numpy  # noqa: F401 - what every process of the library has loaded is no part of the figures

    from asvr.data.llava import LlavaDataset
    from asvr.data.mixture import sampler_of
    from asvr.flops.peak_rate import resident_bytes

    before, begin = resident_bytes(), time.perf_counter()
    dataset = LlavaDataset(ann_file=str(file))
    fingerprint = dataset.fingerprint()
    opened = time.perf_counter()
    sampler = sampler_of(dataset, 0)
    sampler.seek(3 * len(dataset) + len(dataset) // 2)
    order = iter(sampler)
    next(order)
    ordered = time.perf_counter()
    for i in islice(order, reads):
        dataset.record(i)
    done = time.perf_counter()
    return dict(
        records=len(dataset),
        fingerprint=fingerprint,
        open_s=opened - begin,
        first_index_s=ordered - opened,
        reads_per_s=reads / (done - ordered),
        libraries_mib=before / 2**20,
        peak_mib=resident_bytes() / 2**20,
    )


def main() -> None:
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.reads)))
        return
    import torch

    from asvr.base.text import table
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.report import save

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "records.jsonl"
        write(file, args.records)
        time.sleep(WAIT)
        command = [sys.executable, __file__, "--measure", str(file), "--reads", str(args.reads)]
        outputs = [
            subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
            for _ in range(2)
        ]
        sizes = {item.name: item.stat().st_size for item in file.parent.iterdir()}
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first["fingerprint"] == second["fingerprint"] and len(sizes) == 2
    index_mb = (sum(sizes.values()) - sizes[file.name]) / 1e6
    result = dict(machine=machine(torch.device("cpu")), file_gb=sizes[file.name] / 1e9, index_mb=index_mb)
    text = (
        f"{in_words(result['machine'])}; {first['records']:,} records, {result['file_gb']:.2f} GB, index "
        f"{result['index_mb']:.0f} MB; {args.reads:,} random reads\n\n"
    )
    cells = [
        [
            name,
            f"{row['open_s']:.2f}",
            f"{row['first_index_s']:.2f}",
            f"{row['reads_per_s']:.0f}",
            f"{row['libraries_mib']:.0f}",
            f"{row['peak_mib']:.0f}",
        ]
        for name, row in (("first", first), ("later", second))
    ]
    header = ["opening", "open, s", "first sample, s", "reads/s", "libraries alone, MiB", "peak resident, MiB"]
    save(args.out, dict(result, first=first, later=second), text + table(header, cells))


if __name__ == "__main__":
    run_tool(main)
