"""Try many broken images and records: each must be read or refused in words, in little time and memory.

python benchmarks/fuzz_data.py --minutes 10 [--engine random|atheris] [--save FOLDER]

Valid images and records are changed at random, from a fixed seed (random), or towards code that was not reached
before (atheris, where it is installed). Exit code 1 where an input raised anything but a refusal, gave an item that is
not right, ended the process, or took too much time or memory; the input is saved then.
"""

import argparse
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from fuzz_inputs import TARGETS, TEXTS, Inputs, pictures

from asvr.commands.cli import run_tool

SECONDS, MEGABYTES = 10, 700  # of one input; a padded square on the way takes 270 MB
MAX_PIXELS = 4_000_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--inputs", type=int, help="at most so many")
    parser.add_argument("--engine", choices=["random", "atheris"], default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("fuzz_failures"), help="where offending inputs go")
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    return parser.parse_args()


class Trial:
    """One input through what training does with it. Returns ``used`` or the reason of its refusal; raises for all
    else."""

    def __init__(self, folder: Path):
        from asvr.data.text_tokenizer import ByteLevelBPE
        from asvr.data.transforms import ImageTransform

        class Corpus:
            def texts(self, template=None):
                yield from TEXTS[:1]

        self.tokenizer = ByteLevelBPE(vocab_size=300, corpus=Corpus(), special_tokens=["<|im_start|>", "<|im_end|>"])
        self.views = [ImageTransform(size=(16, 24), center_crop=crop) for crop in (False, True)]
        self.folder = folder
        (folder / "a.png").write_bytes(pictures()[0])

    def __call__(self, target: str, data: bytes) -> str:
        from asvr.data.refusals import Refused

        try:
            return self.image(data) if target == "picture" else self.records(data)
        except Refused as error:
            assert str(error).isprintable() or "\n" in str(error)
            return error.reason

    def image(self, data: bytes) -> str:
        from asvr.data.images import open_image
        from asvr.data.transforms import ASPECTS

        file = self.folder / "input"
        file.write_bytes(data)
        image = open_image(file, max_pixels=MAX_PIXELS, upright=len(data) % 2 == 0)
        assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
        for view in self.views:
            for aspect in ASPECTS:
                pixels = view(image, aspect)
                assert pixels.shape == (3, 16, 24) and bool(pixels.isfinite().all())
        return "used"

    def records(self, data: bytes) -> str:
        from asvr.data.llava import LlavaDataset
        from asvr.data.refusals import Refusal, Refused

        file = self.folder / "input.json"
        file.write_bytes(data)
        templates = ("plain", "vicuna_v1", "llama_2", "mistral", "chatml")
        own = dict(tokenizer=self.tokenizer, template=templates[len(data) % 5], max_length=200, num_image_tokens=4)
        try:
            dataset = LlavaDataset(ann_file=str(file), on_error="skip", **own)
        except ValueError as error:
            if isinstance(error, Refused) or str(file) not in str(error):
                raise
            return "unreadable file"
        found = [dataset[i] for i in range(len(dataset))] + [dataset.question(i) for i in range(len(dataset))]
        assert [*dataset.texts(), *dataset.images(), dataset.fingerprint()]
        for item in found:
            if not isinstance(item, Refusal):
                self.check(item, own["template"])
        return "used" if not isinstance(found[0], Refusal) else found[0].reason

    def check(self, item: dict, template: str) -> None:
        from asvr.data.batch import IGNORE, IMAGE_TOKEN

        ids, labels = item["input_ids"], item["labels"]
        assert len(ids) == len(labels) and ids.count(IMAGE_TOKEN) == len(item["images"])
        assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
        assert len(ids) + 3 * ids.count(IMAGE_TOKEN) <= 200
        hf = self.tokenizer.hf
        assert hf.pad_token_id not in ids
        if template != "chatml":
            assert hf.convert_tokens_to_ids("<|im_end|>") not in ids


def memory_peak_mb() -> float:
    """The largest resident size since the last call."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def work(seed: int, skip: int, folder: Path, shared, results) -> None:
    """Run inputs until told to end. shared: number of the input, when it began. Its bytes are in a file, for whoever
    finds this process dead or too slow."""
    import warnings

    warnings.simplefilter("ignore")  # of PIL, about what is broken
    inputs, trial = Inputs(seed), Trial(folder)
    for _ in range(skip):
        next(inputs)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
    memory_peak_mb()
    number = skip
    while True:
        target, data = next(inputs)
        (folder / "current").write_bytes(data)
        base = memory_peak_mb()
        shared[0], shared[1] = number, time.monotonic()
        try:
            outcome, failure = trial(target, data), None
        except Exception as error:
            outcome, failure = "failure", f"{type(error).__name__}: {error}"
        seconds, megabytes = time.monotonic() - shared[1], memory_peak_mb() - base
        if megabytes > MEGABYTES:
            outcome, failure = "failure", f"took {megabytes:.0f} MB"
        results.put((target, outcome, failure, data if failure else None, seconds, megabytes))
        number += 1


def run_random(args: argparse.Namespace, folder: Path) -> dict:
    context = multiprocessing.get_context("fork")
    shared = context.Array("d", 2, lock=False)
    counts, failures, slowest, largest, number = Counter(), [], 0.0, 0.0, 0
    end = time.monotonic() + 60 * args.minutes
    worker = None
    while time.monotonic() < end and (args.inputs is None or number < args.inputs):
        if worker is None:
            shared[0], shared[1] = number, time.monotonic() + 60  # it has to import
            results = context.SimpleQueue()  # of its own: one that was killed may have left half a message
            worker = context.Process(target=work, args=(args.seed, number, folder, shared, results), daemon=True)
            worker.start()
        if not results.empty():
            target, outcome, failure, data, seconds, megabytes = results.get()
            counts[f"{target}: {outcome}"] += 1
            number, slowest, largest = number + 1, max(slowest, seconds), max(largest, megabytes)
        elif worker.exitcode is not None or time.monotonic() - shared[1] > SECONDS:
            failure = f"process ended with {worker.exitcode}" if worker.exitcode is not None else f"over {SECONDS} s"
            worker.kill()
            worker.join()
            data, worker, number = (folder / "current").read_bytes(), None, number + 1
            counts["killed"] += 1
        else:
            time.sleep(0.001)
            continue
        if failure:
            failures.append(save_input(args.save, data, failure))
    if worker is not None:
        worker.kill()
        worker.join()
    return dict(inputs=number, outcomes=dict(counts), failures=failures, slowest_s=slowest, largest_mb=largest)


def run_atheris(args: argparse.Namespace, folder: Path) -> dict:
    """libFuzzer in a process of its own, guided by what it reaches in PIL's and this library's Python."""
    log = folder / "log"
    child = multiprocessing.get_context("fork").Process(target=guided, args=(args, folder, log))
    child.start()
    child.join()
    text = log.read_text(errors="replace", encoding="utf-8")
    executed = re.search(r"number_of_executed_units:\s*(\d+)", text)
    failures = [str(file) for file in sorted(args.save.glob("atheris-*"))] if child.exitcode else []
    if child.exitcode:
        sys.stderr.write(text[-4000:])
        failures = failures or [f"exit code {child.exitcode}"]
    return dict(inputs=int(executed[1]) if executed else 0, failures=failures)


def guided(args: argparse.Namespace, folder: Path, log: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["PIL", "asvr.data"]):
        from PIL import (  # noqa: F401  # noqa: F401
            BmpImagePlugin,
            GifImagePlugin,
            JpegImagePlugin,
            PngImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )

        import asvr.data.conversation
        import asvr.data.images
        import asvr.data.llava
        import asvr.data.strict_json  # noqa: F401
    import warnings

    warnings.simplefilter("ignore")
    trial, inputs = Trial(folder), Inputs(args.seed)
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, data in enumerate(inputs.pictures):
        (corpus / f"image{i}").write_bytes(bytes([0]) + data)
    for i in range(200):
        target, data = next(inputs)
        (corpus / f"input{i}").write_bytes(bytes([TARGETS.index(target)]) + data)
    args.save.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={int(60 * args.minutes)}", f"-timeout={SECONDS}", f"-rss_limit_mb={4 * MEGABYTES}"]
    options += [f"-seed={args.seed + 1}", f"-artifact_prefix={args.save}/atheris-", "-print_final_stats=1"]
    options += ["-max_len=8192"] + ([f"-runs={args.inputs}"] if args.inputs else [])
    stream = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)

    def one(data: bytes) -> None:
        if data:
            trial(TARGETS[data[0] % len(TARGETS)], data[1:])

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def save_input(folder: Path, data: bytes, why: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{zlib.crc32(data):08x}"
    file.write_bytes(data)
    print(f"{file}: {why}", flush=True)
    return f"{file}: {why}"


def main() -> None:
    args = parse_args()
    from asvr.base.text import table
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.report import save
    from asvr.recipe.build import build_device

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = dict(random=run_random, atheris=run_atheris)[args.engine](args, Path(folder))
    result |= dict(engine=args.engine, seed=args.seed, minutes=(time.monotonic() - begin) / 60)
    found = machine(build_device("cpu")) | dict(pillow=version("pillow"))
    text = (
        f"{in_words(found)}, Pillow {found['pillow']}\n\n{args.engine}, seed {args.seed}: {result['inputs']:,} inputs "
    )
    text += f"in {result['minutes']:.1f} minutes, {len(result['failures'])} failures"
    if args.engine == "random":
        text += f"; the slowest took {result['slowest_s']:.2f} s, the largest {result['largest_mb']:.0f} MB\n\n"
        text += table(["input", "number"], [[key, f"{n:,}"] for key, n in sorted(result["outcomes"].items())])
    save(args.out, dict(machine=found, **result), text)
    if result["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
