"""The cost of all methods: counted on one folder of recipes, measured on another."""

import json
import sys
from pathlib import Path

import torch

from asvr.base.files import replace_text
from asvr.flops.count import Sample
from asvr.profiling.machine import machine
from asvr.profiling.method_table import draw, markdown
from asvr.profiling.method_times import time_method
from asvr.profiling.methods import count_method, method_configs
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

COMMAND = "python benchmarks/methods.py --out benchmarks/results/methods"


def compare_methods(*, counted: Path, timed: Path, out: Path, rounds: int, keep_times: bool = False) -> str:
    """Count every method of the folder ``counted``, and measure those that ``timed`` has too.

    Writes ``out``.json, .md and .png, and returns the table. Files are written after each method. keep_times: measure
    only methods without a time in ``out``.json. Raises ``ValueError`` if a folder has no config.
    """
    configs, small = method_configs(counted), method_configs(timed)
    for option, folder, found in (("--counted", counted, configs), ("--timed", timed, small)):
        if not found:
            raise ValueError(f"{option} {folder}: there is no config in it")
    if rounds < 2:
        raise ValueError(f"--rounds {rounds}: expected at least 2, for a spread")
    sample, file = Sample(), out.with_suffix(".json")
    before = json.loads(file.read_text(encoding="utf-8"))["methods"] if keep_times and file.is_file() else {}
    methods = {}
    for name, path in configs.items():
        print(f"{name}: counting", file=sys.stderr)
        methods[name] = dict(count_method(path, sample), time=before.get(name, {}).get("time"))
    stage = Recipe(load_config(next(iter(configs.values())))).last
    result = dict(
        command=COMMAND,
        machine=machine(torch.device("cpu")),
        sample=dict(image_tokens=build_meta(stage).layout.largest().num_tokens, text_tokens=sample.text_tokens),
        methods=methods,
    )
    write(result, out)
    for name, method in methods.items():
        if name in small and method["time"] is None:
            method["time"] = time_method(small[name], rounds=rounds)
            write(result, out)
    return markdown(result)


def write(result: dict, out: Path) -> None:
    """Write ``out``.json, .md and .png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    replace_text(out.with_suffix(".md"), markdown(result))
    draw(result, out.with_suffix(".png"))
