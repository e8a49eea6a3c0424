"""One side of a throughput comparison. It runs in a process of its own, so its peak memory can be measured.

It reads lines of JSON and answers each with one line. The first line says what to build. The others are
``{"steps": n}``, ``{"rate": dtype}`` or ``{"peak": true}``.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from asvr.base.precision import PRECISIONS
from asvr.data.layouts import crop_keys
from asvr.data.transforms import move, stacked
from asvr.engine.optim import build_optim_wrapper
from asvr.flops.peak_rate import held_tensors, resident_bytes, step_peak
from asvr.flops.recomputation import fit_memory
from asvr.flops.step import StepFlops
from asvr.models.attention import AUTO, use_attention
from asvr.models.compiling import compile_blocks
from asvr.models.transforms import require_device, transform_and_train
from asvr.profiling.huggingface import HuggingFaceStep
from asvr.profiling.machine import machine
from asvr.profiling.plain import PlainStep, plain_optimizer
from asvr.profiling.synthetic import IMAGE_SIZE, SyntheticSamples
from asvr.recipe.build import build_collate, build_device, build_step_loader, pack_limits
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe, Stage
from asvr.registry import MODELS

MOMENT, LARGEST = 0.02, 8192  # seconds, rows
PHASES = ("data", "forward", "backward", "optimizer")
# Ways to take a step: this library's, the released code's, that of transformers' LLaVA.
OWN, PLAIN, TRANSFORMERS = "own", "plain", "transformers"


class PadId:
    """The part of a text tokenizer that `build_collate` needs."""

    pad_id = 0


class StoredCodes:
    """Codes of the benchmark's images, and the encoder's features with ``keep_features``.

    They are computed before the clock starts, and replace a cache on disk.
    """

    def __init__(self, model, samples: SyntheticSamples, needed: range, aspect: str, *, keep_features: bool):
        targets = [target for target in model.targets if target.truth_spec() is not None]
        self.stored: dict[str, dict] = {target.name: {} for target in targets}
        self.kept: dict[str, torch.Tensor] | None = {} if keep_features else None

        def pixels(i: int) -> list[tuple]:
            """The key and the pixels of each crop of each image of a sample."""
            item, found = samples[i], []
            for key, image in zip(item["image_keys"], item["images"], strict=True):
                crops = model.layout.crops(image)
                own = [{n: stacked([view(crop, aspect)]) for n, view in model.views().items()} for crop in crops]
                found += zip(crop_keys(key, len(crops)), own, strict=True)
            return found

        with ThreadPoolExecutor() as pool, torch.no_grad():
            for key, views in itertools.chain.from_iterable(pool.map(pixels, needed)):
                own = {name: move(pixels, model.device) for name, pixels in views.items()}
                features_INE = model.encode(own["encoder"])
                if keep_features:
                    self.kept[key] = features_INE.cpu()
                for target in targets:
                    self.stored[target.name][key] = target.to_cache(target.truth(own, features_INE))

    def check(self, keys: list[str]) -> None:
        pass

    def features(self, keys: list[str]) -> torch.Tensor | None:
        return None if self.kept is None else torch.cat([self.kept[key] for key in keys])

    def truth(self, target: str, keys: list[str]) -> dict[str, torch.Tensor] | None:
        if target not in self.stored:
            return None
        rows = [self.stored[target][key] for key in keys]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


class Worker:
    """A model, its optimiser and its batches, ready to take steps.

    spec: config, cfg_options, stage, implementation (``own``, ``plain`` or ``transformers``), codes (``cached`` or
    ``online``), samples (per step), steps (at most), first (number of the first step); steps_of_turn: a smaller limit
    of steps on an accelerator; cached_features: whether the features of a frozen encoder are cached too, as with
    ``data.cache=True`` (default: no).
    """

    def __init__(self, spec: dict):
        recipe = Recipe(load_config(spec["config"], spec["cfg_options"]))
        self.stage = stage = recipe.stage(spec["stage"])
        own, self.size = spec["implementation"] == OWN, spec["samples"]
        stage.data.global_batch = self.size
        stage.data.micro_batch = min(stage.data.micro_batch, self.size)
        if not own:
            stage.data.pack, stage.data.group, spec["codes"] = False, None, "online"
        self.device = build_device(stage.runtime.device)
        self.dtype = PRECISIONS[stage.optim.precision]
        self.model = model = random_model(stage, self.device)
        self.samples = SyntheticSamples(
            num_image_tokens=model.layout(IMAGE_SIZE).num_tokens,
            max_length=stage.data.max_length,
            vocab_size=model.llm.vocab_size,
        )
        on_gpu = self.device.type == "cuda"
        steps = spec.get("steps_of_turn", spec["steps"]) if on_gpu else spec["steps"]
        numbers, stored = range(spec["first"], spec["first"] + steps), None
        features = spec["codes"] == "cached" and spec.get("cached_features", False)
        if features or (spec["codes"] == "cached" and model.targets):
            needed = range(self.size * numbers.start, self.size * numbers.stop)
            stored = StoredCodes(model, self.samples, needed, stage.data.image_aspect, keep_features=features)
        if not on_gpu:
            stage.data.num_workers = 0  # the step needs all cores, and workers would take some
        micro = f"micro-batches of {stage.data.micro_batch}"
        if spec["implementation"] == PLAIN:
            self.how = f"{micro}, padded rows, masked SDPA, online codes, AdamW, {stage.optim.precision}"
        elif spec["implementation"] == TRANSFORMERS:
            self.how = f"{micro}, padded rows, transformers' LLaVA with SDPA, fused AdamW, {stage.optim.precision}"
        if not own and stage.model.llm.get("activation_checkpointing", "none") != "none":
            self.how += ", LLM recomputed"
        if own:
            kernel = use_attention(model, stage.runtime.get("attention", AUTO), self.dtype)
            rows = "packed" if stage.data.get("pack") else "padded"
            codes = f"{spec['codes']} codes, " if model.targets else ""
            codes += "cached features, " if features else ""
            self.how = f"{micro}, {rows} rows, {kernel}, {codes}fused AdamW, {stage.optim.precision}"
            fit_memory(stage, model, self.device)
            if stage.runtime.get("compile"):
                compile_blocks(model)
                self.how += ", compiled"
        collate = build_collate(stage.data, model, PadId, stored, packed=pack_limits(stage.data) is not None)
        of_steps = [range(number * self.size, (number + 1) * self.size) for number in numbers]
        self.windows = iter(build_step_loader(stage, self.samples, collate, of_steps))
        self.flops = StepFlops(stage)
        steps = {PLAIN: PlainStep, TRANSFORMERS: partial(HuggingFaceStep, dtype=self.dtype), OWN: lambda model: model}
        self.step = steps[spec["implementation"]](model)
        self.wrapper = build_optim_wrapper(model, stage.optim)
        self.wrapper.never_skips = not own
        if spec["implementation"] == PLAIN:
            self.wrapper.optimizer = plain_optimizer(model, stage.optim)
        self.optimizer = self.wrapper.optimizer

    def run(self, steps: int) -> dict:
        """Take steps. Returns seconds by phase, losses, tokens, images and FLOPs of each. As in training, nothing waits
        for the device between steps."""
        return dict(steps=[read() for read in [self.one() for _ in range(steps)]], how=self.how)

    def peak(self) -> dict:
        """Peak memory of one more step, whose time does not count, and the resident size of the process."""
        resident = resident_bytes()  # before the profiler below takes memory itself
        held = held_tensors(self.step, self.optimizer)
        return dict(peak_bytes=step_peak(self.one, self.device, held), resident_bytes=resident)

    def one(self) -> Callable[[], dict]:
        """Take a step. The returned function waits for it and returns its numbers."""
        clock, model, processor = Clock(self.device), self.model, time.process_time()
        window = next(self.windows)
        clock.stop("data")
        logs = self.step.train_step(window, _Timed(self.wrapper, clock))
        clock.stop("optimizer")  # includes the averages that targets update after the step
        processor = time.process_time() - processor
        return lambda: dict(
            seconds=clock.seconds(),
            processor_seconds=processor,
            losses={name: float(logs[name]) for name in model.weights() if name in logs},
            tokens=sum(batch.num_tokens for batch in window),
            positions=sum(batch.input_ids_BT.numel() for batch in window),
            images=sum(len(batch.crops) for batch in window),
            flops=self.flops(window),
        )

    def rate(self, dtype: str) -> dict:
        """FLOP/s of a matrix product on this machine, the median of several.

        The size grows until the product takes a moment, because some CPUs compute bfloat16 a hundred times slower than
        float32.
        """
        size, seconds = 256, self._product(256, dtype)
        while seconds < MOMENT and size < LARGEST:
            size *= 2
            seconds = self._product(size, dtype)
        return dict(flop_per_s=2 * size**3 / sorted(self._product(size, dtype) for _ in range(5))[2])

    def _product(self, size: int, dtype: str) -> float:
        a, b = (torch.randn(size, size, device=self.device, dtype=getattr(torch, dtype)) for _ in range(2))
        a @ b
        clock = Clock(self.device)
        a @ b
        clock.stop("product")
        return clock.seconds()["product"]


class _Timed:
    """An optim wrapper for `VLM.train_step` that stops a clock after each phase."""

    def __init__(self, wrapper, clock: "Clock"):
        self.wrapper, self.clock = wrapper, clock

    def optim_context(self, model):
        return self.wrapper.optim_context(model)

    def backward(self, loss: torch.Tensor) -> None:
        self.clock.stop("forward")
        self.wrapper.backward(loss)
        self.clock.stop("backward")

    def step(self) -> None:
        self.wrapper.step()

    def zero_grad(self) -> None:
        self.wrapper.zero_grad()
        self.clock.stop("optimizer")


class Clock:
    """Measures seconds by name, from one stop to the next. On CUDA it records events in the device's queue, and waits
    for them only when the seconds are read."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks = [("", self._now())]

    def stop(self, name: str) -> None:
        self.marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for (_, begin), (name, end) in itertools.pairwise(self.marks):
            taken = begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
            found[name] = found.get(name, 0) + taken
        return found

    def _now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def random_model(stage: Stage, device: torch.device):
    """The model of a stage with random weights and random codebooks. Weights that its config names are not read."""
    require_device(stage.model_transforms, device)
    torch.manual_seed(stage.runtime.seed)
    with device:
        vocabulary = stage.text_tokenizer.get("vocab_size")
        model = MODELS.build(stage.model, default_args=dict(vocab_size=vocabulary, load_weights=False))
        transform_and_train(model, stage.model_transforms, list(stage.train))
    for tokenizer in model.tokenizers.values():
        if hasattr(tokenizer, "trained"):
            tokenizer.trained.fill_(True)
        for book in getattr(getattr(tokenizer, "quantizer", None), "codebooks", []):
            torch.nn.init.normal_(book.weight)
            book.share.fill_(1 / len(book.share))
    return model.train()


def guarded(respond: Callable[[], dict]) -> dict:
    """The result of ``respond``. Out of memory and ``ValueError`` become an answer too."""
    try:
        return respond()
    except (torch.OutOfMemoryError, MemoryError):
        return dict(out_of_memory=True)
    except ValueError as error:
        return dict(error=str(error))
    except RuntimeError as error:  # torch on the CPU
        if "can't allocate memory" not in str(error):
            raise
        return dict(out_of_memory=True)


def main() -> None:
    worker = None

    def respond(order: dict) -> dict:
        nonlocal worker
        if worker is None:
            worker = Worker(order)
            return dict(machine=machine(worker.device), kind=worker.device.type)
        if "rate" in order:
            return worker.rate(order["rate"])
        return worker.peak() if "peak" in order else worker.run(order["steps"])

    for line in sys.stdin:
        answer = guarded(partial(respond, json.loads(line)))
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    ANSWERS, sys.stdout = sys.stdout, sys.stderr  # other prints of libraries go to stderr
    main()
