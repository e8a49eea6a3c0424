"""Several processes with gloo, each a fork of one that has imported the library."""

import multiprocessing
import tempfile
from pathlib import Path

import torch
from torch.distributed import destroy_process_group, init_process_group, is_initialized


def in_processes(number: int, work, *args) -> list:
    """``work(rank, *args)`` in each of them, with a process group; their results. ``work`` is a module's function."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "asvr.engine.runner", "transformers", work.__module__])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_one, args=(rank, number, folder, work, args), daemon=True) for rank in range(number)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
        assert [process.exitcode for process in processes] == [0] * number
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(number)]


def _one(rank: int, number: int, folder: str, work, args: tuple) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=number)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    if is_initialized():  # not ended by the work
        destroy_process_group()
