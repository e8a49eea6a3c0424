"""The pause that a checkpoint costs training: written at once, and while training goes on, in turn in one run.

python benchmarks/checkpoint.py CONFIG [--samples 1] [--rounds 3] [--folder DIR]

Trains with random weights and synthetic samples. A pause is the time until the next step may begin. Steps that run
while a checkpoint is written share cores, memory and Python's lock with it, so they are timed too.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from asvr.commands.cli import add_cfg_options, parse_cfg_options, require_positive, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--stage", help="default: the last")
    parser.add_argument("--samples", type=int, default=1, help="of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="between two checkpoints")
    parser.add_argument("--sharded", action="store_true", help="by FSDP2 in a group of this one process")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written, and removed; default: temporary")
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    add_cfg_options(parser)
    return parser.parse_args()


def shard(worker, folder: Path) -> None:
    from torch.distributed import init_process_group
    from torch.distributed.fsdp import fully_shard

    from asvr.engine.optim import build_optim_wrapper

    meet = f"file://{folder.absolute()}/meet"
    init_process_group("nccl" if worker.device.type == "cuda" else "gloo", init_method=meet, rank=0, world_size=1)
    for block in worker.model.llm.blocks:
        fully_shard(block)
    fully_shard(worker.model)
    worker.wrapper = build_optim_wrapper(worker.model, worker.stage.optim)
    worker.optimizer = worker.wrapper.optimizer


def seconds_of(worker, steps: int) -> float:
    """Of one of ``steps`` steps, to the end of their work on the device."""
    begin = time.perf_counter()
    worker.run(steps)
    return (time.perf_counter() - begin) / steps


def one_save(worker, saver, number: int, steps: int) -> dict:
    """Seconds: until training may go on, of a step behind that, and until the files are there."""
    alone = seconds_of(worker, steps)
    begin = time.perf_counter()
    saver.save(number, model=worker.model, optimizer=worker.optimizer, state={}, meta={})
    pause = time.perf_counter() - begin
    behind = seconds_of(worker, steps)
    saver.wait()
    return dict(pause=pause, step_alone=alone, step_behind=behind)


def main() -> None:
    args = parse_args()
    require_positive({name: getattr(args, name) for name in ("samples", "rounds", "steps")})
    from asvr.base.text import table
    from asvr.engine.checkpoint import newest
    from asvr.engine.saver import Saver
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.report import save
    from asvr.profiling.worker import OWN, Worker

    spec = dict(config=args.config, cfg_options=parse_cfg_options(args.cfg_options), stage=args.stage)
    spec |= dict(implementation=OWN, codes="online", samples=args.samples, first=0)
    spec["steps"] = 1 + 4 * args.steps * (args.rounds + 1)
    worker = Worker(spec)
    folder = Path(tempfile.mkdtemp(prefix="checkpoints.", dir=args.folder))
    try:
        if args.sharded:
            shard(worker, folder)
        worker.run(1)
        savers = {
            way: Saver(folder=folder / way, keep=1, asynchronous=way == "meanwhile") for way in ("at once", "meanwhile")
        }
        rounds: dict[str, list] = {way: [] for way in savers}
        for number in range(1, args.rounds + 2):
            for way, saver in savers.items():
                rounds[way].append(one_save(worker, saver, number, args.steps))
        size = sum(file.stat().st_size for file in newest(folder / "at once").rglob("*") if file.is_file())
    finally:
        shutil.rmtree(folder)
    # The first of each is apart: it takes the memory that the next ones use again.
    median = {
        way: {key: statistics.median(one[key] for one in found[1:]) for key in found[0]}
        for way, found in rounds.items()
    }
    where = machine(worker.device)
    text = (
        f"{in_words(where)}; {args.config}{', sharded' if args.sharded else ''}, checkpoints of {size / 1e9:.2f} GB\n\n"
    )
    cells = [
        [way, f"{found[0]['pause']:.3f}"]
        + [f"{median[way][key]:.3f}" for key in ("pause", "step_alone", "step_behind")]
        for way, found in rounds.items()
    ]
    header = ["written", "first pause, s", "pause, s", "a step without writing, s", "a step behind the pause, s"]
    text += table(header, cells)
    save(args.out, dict(machine=where, bytes=size, rounds=rounds, median=median), text)


if __name__ == "__main__":
    run_tool(main)
