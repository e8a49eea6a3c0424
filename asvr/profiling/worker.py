"""One side of a throughput comparison, in a process of its own, so that its peak memory is its own.

Reads lines of JSON, answers each with one: first what to build, then ``{"steps": n}``, ``{"rate": dtype}`` or
``{"peak": true}``.
"""

import json
import sys
import time

import torch
from mmengine.config import Config

from asvr.config import load_config, stage_config
from asvr.data.packing import StepCollate
from asvr.engine.build import build_collate, build_device, pack_limits
from asvr.engine.optim import PRECISIONS, build_optim_wrapper
from asvr.models.attention import AUTO, use_attention
from asvr.models.compiling import compile_blocks
from asvr.profiling.machine import machine
from asvr.profiling.peak import held_tensors, resident_bytes, step_peak
from asvr.profiling.plain import PlainStep, plain_optimizer
from asvr.profiling.step_flops import StepFlops
from asvr.profiling.synthetic import SyntheticSamples
from asvr.registry import MODELS

MOMENT, LARGEST = 0.02, 8192  # seconds, rows
PHASES = ("data", "forward", "backward", "optimizer")


class PadId:
    """What `build_collate` wants of a text tokenizer."""

    pad_id = 0


class StoredCodes:
    """Codes of the benchmark's pictures, computed before its clock runs, in place of a cache on disk."""

    def __init__(self, model, samples: SyntheticSamples, needed: range, aspect: str):
        self.stored: dict[str, dict] = {target.name: {} for target in model.targets}
        for item in (samples[i] for i in needed):
            for key, picture in zip(item["image_keys"], item["images"], strict=True):
                for target in model.targets:
                    pixels = target.tokenizer.transform(picture, aspect)[None].to(model.device)
                    self.stored[target.name][key] = target.tokenizer.encode(pixels)[0].to("cpu", torch.int32)

    def check(self, keys: list[str]) -> None:
        pass

    def features(self, keys: list[str]) -> None:
        return None

    def codes(self, target: str, keys: list[str]) -> torch.Tensor | None:
        return torch.stack([self.stored[target][key] for key in keys])


class Worker:
    """spec: config, cfg_options, stage, plain, codes (``cached`` or ``online``), samples (a step), steps (in all),
    first (number of the first one)."""

    def __init__(self, spec: dict):
        cfg = load_config(spec["config"], spec["cfg_options"])
        self.stage = stage = stage_config(cfg, spec["stage"] or list(cfg.stages)[-1])
        self.plain, self.size = spec["plain"], spec["samples"]
        stage.data.global_batch = self.size
        stage.data.micro_batch = min(stage.data.micro_batch, self.size)
        if self.plain:
            stage.data.pack, stage.data.group, spec["codes"] = False, None, "online"
        self.device = build_device(stage.runtime.device)
        self.dtype = PRECISIONS[stage.optim.precision]
        self.model = model = random_model(stage, self.device)
        self.samples = SyntheticSamples(
            num_image_tokens=model.encoder.num_tokens,
            max_length=stage.data.max_length,
            vocab_size=model.llm.vocab_size,
        )
        stored = None
        if spec["codes"] == "cached" and model.targets:
            needed = range(self.size * spec["first"], self.size * (spec["first"] + spec["steps"]))
            stored = StoredCodes(model, self.samples, needed, stage.data.image_aspect)
        micro = f"micro-batches of {stage.data.micro_batch}"
        self.how = f"{micro}, padded rows, masked SDPA, online codes, AdamW, {stage.optim.precision}"
        if not self.plain:
            kernel = use_attention(model, stage.runtime.get("attention", AUTO), self.dtype)
            rows = "packed" if stage.data.get("pack") else "padded"
            codes = f"{spec['codes']} codes, " if model.targets else ""
            self.how = f"{micro}, {rows} rows, {kernel}, {codes}fused AdamW, {stage.optim.precision}"
            if stage.runtime.get("compile"):
                compile_blocks(model.llm)
        limits = pack_limits(stage.data)
        collate = build_collate(stage.data, model, PadId, stored, packed=limits is not None)
        self.collate = StepCollate(
            collate, micro_batch=stage.data.micro_batch, pack=limits, group=stage.data.get("group")
        )
        self.flops = StepFlops(stage)
        if self.plain:
            self.step, self.optimizer = PlainStep(model), plain_optimizer(model, stage.optim)
        else:
            self.wrapper = build_optim_wrapper(model, stage.optim)
            self.step, self.optimizer = model, self.wrapper.optimizer
        self.number = spec["first"]

    def run(self, steps: int) -> dict:
        """Steps one after another: seconds by phase, losses, tokens, images and FLOPs of each."""
        return dict(steps=[self.one() for _ in range(steps)], how=self.how)

    def peak(self) -> dict:
        """Of one more step, whose time does not count, and of the whole process."""
        held = held_tensors(self.model, self.optimizer)
        return dict(peak_bytes=step_peak(self.one, self.device, held), resident_bytes=resident_bytes())

    def one(self) -> dict:
        clock, model = Clock(self.device), self.model
        first = self.number * self.size
        window = self.collate([self.samples[i] for i in range(first, first + self.size)])
        clock.stop("data")
        totals, sums = model.count_targets(window), {}
        for batch in window:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                out = self.step(batch.to(self.device))
                weights = {name: weight for name, weight in model.weights().items() if name in out}
                loss = sum(out[name] * (weight / totals[name]) for name, weight in weights.items())
            clock.stop("forward")
            loss.backward()
            clock.stop("backward")
            for name in weights:
                sums[name] = sums.get(name, 0) + out[name].detach() / totals[name]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.stage.optim.clip_grad or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.stop("optimizer")
        self.number += 1
        return dict(
            seconds=clock.seconds,
            losses={name: float(value) for name, value in sums.items()},
            tokens=sum(batch.num_tokens for batch in window),
            positions=sum(batch.input_ids_BT.numel() for batch in window),
            images=sum(batch.num_images for batch in window),
            flops=self.flops(window),
        )

    def rate(self, dtype: str) -> dict:
        """FLOP/s of a matrix product of this machine, the median of several.

        The product is as large as takes a moment: some CPUs compute bfloat16 a hundred times slower than float32.
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
        return clock.seconds["product"]


class Clock:
    """Seconds since the last stop, by name, with the device's work done."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}
        self._synchronize()
        self.last = time.perf_counter()

    def stop(self, name: str) -> None:
        self._synchronize()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0) + now - self.last
        self.last = now

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_model(stage: Config, device: torch.device):
    """The model of a stage with random weights, whatever weights its config names, and random codebooks."""
    torch.manual_seed(stage.runtime.seed)
    with device:
        vocabulary = stage.text_tokenizer.get("vocab_size")
        model = MODELS.build(stage.model, default_args=dict(vocab_size=vocabulary, load_weights=False))
    for target in model.targets:
        if hasattr(target.tokenizer, "trained"):
            target.tokenizer.trained.fill_(True)
        for book in getattr(getattr(target.tokenizer, "quantizer", None), "codebooks", []):
            torch.nn.init.normal_(book.weight)
            book.share.fill_(1 / len(book.share))
    model.train_only(list(stage.train))
    return model.train()


def main() -> None:
    worker = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if worker is None:
                worker = Worker(order)
                answer = dict(machine=machine(worker.device), kind=worker.device.type)
            elif "rate" in order:
                answer = worker.rate(order["rate"])
            elif "peak" in order:
                answer = worker.peak()
            else:
                answer = worker.run(order["steps"])
        except (torch.OutOfMemoryError, MemoryError):
            answer = dict(out_of_memory=True)
        except ValueError as error:
            answer = dict(error=str(error))
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    ANSWERS, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    main()
