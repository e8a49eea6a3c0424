"""Writes the progress bar, readable log lines and JSON lines, with one synchronisation in each interval."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.hooks import Hook

from asvr.base.disk import naming
from asvr.base.distributed import gather, get_world_size, is_main_process, sum_over_processes
from asvr.base.files import replace_text
from asvr.base.log import logger, progress_bar
from asvr.data.refusals import Refusal
from asvr.engine.parallel import unwrap
from asvr.flops.peak_rate import resident_bytes
from asvr.flops.step import StepFlops
from asvr.registry import HOOKS

NORM = "grad_norm"


@HOOKS.register_module()
class ProgressHook(Hook):
    """Logs losses, accuracies, throughput and memory every ``interval`` steps.

    A mean is over those steps of the interval that have the loss. Skipped steps do not count. If several processes
    share a step, sums are over all of them, and times and memory are those of the first one.

    Each line of ``file`` is one JSON object: step, lr, loss (weighted sum), loss_<name> in nats for each token,
    acc_<name> (text) and acc_<target> (a list, one for each depth), grad_norm, tokens_per_s and images_per_s (without
    padding), real_tokens_percent (of all computed positions), data_time_percent (the part of the interval spent waiting
    for input), tflop_per_s (the FLOPs that the samples need, without padding and recomputation), mfu_percent (from
    tflop_per_s, in bf16 on a GPU whose peak is known; with FP8 products too, it is a share of the bf16 peak),
    peak_memory_gib, eta_s, refused (reason -> samples left out since the stage began; only if there are any), samples
    (for a mixture: source -> samples drawn since the stage began), skipped (steps since the stage began that were not
    finite; only if there are any). If all steps of an interval were skipped, loss and grad_norm are null, and there are
    no other means. If all samples of an interval were refused, loss is 0, and there are no other losses.

    Any hook with a method ``after_log(runner, kind, record)`` gets each record, only in the first process. kind: train;
    `ValidationHook` calls it with validation.

    drawn: a function that returns ``samples`` after a step, see `asvr.data.mixture.Mixture.drawn`.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        *,
        file: str,
        stage: str,
        interval: int,
        flops: StepFlops | None = None,
        drawn: Callable[[int], dict[str, int]] | None = None,
    ):
        if interval < 1:
            raise ValueError(f"runtime.log_interval={interval} must be at least 1")
        self.file, self.stage, self.interval = Path(file), stage, interval
        self.refused: Counter = Counter()
        self.skipped = 0
        self.flops, self.drawn = flops, drawn  # None if FLOPs cannot be counted; None if there is only one source
        self._reset()

    def state_dict(self) -> dict:
        """The sums of the interval so far, so that a resumed run writes the same lines."""
        real, positions = (sum(own) for own in zip(*gather(self._places()), strict=True))
        own = dict(refused=dict(_added(gather(self.refused))), skipped=self.skipped, earlier=(real, positions))
        return dict(own, sums=self._all_sums(), counts=dict(self.counts), steps=self.steps)

    def load_state_dict(self, state: dict) -> None:
        self.counts, self.steps, self.skipped = state["counts"], state["steps"], state["skipped"]
        self.sums = {
            key: value if self._counts_here(key) else torch.zeros_like(value) for key, value in state["sums"].items()
        }
        self.refused = Counter(state["refused"] if is_main_process() else {})
        self.earlier = tuple(state["earlier"]) if is_main_process() else (0, 0)

    def before_train(self, runner) -> None:
        if is_main_process():
            forget_after(self.file, self.stage, runner.iter)
        self.bar = progress_bar(total=runner.max_iters, initial=runner.iter, desc=self.stage, unit="step")
        device = unwrap(runner.model).device
        self.sums = {key: value.to(device) for key, value in self.sums.items()}
        self.counts = {key: value.to(device) for key, value in self.counts.items()}
        self.first = runner.iter
        self.begin = self.start = time.perf_counter()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}  # steps in each sum; only the device knows which were skipped
        self.steps = self.tokens = self.positions = self.images = self.needed_flops = 0
        self.data_time, self.start = 0.0, time.perf_counter()
        self.earlier = (0, 0)  # `_places` of an interrupted process; its times and rates do not count

    def _places(self) -> tuple[int, int]:
        """Real tokens and positions of the interval so far."""
        return self.tokens + self.earlier[0], self.positions + self.earlier[1]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        skipped = runner.optim_wrapper.skipped
        for key, value in dict(outputs, grad_norm=runner.optim_wrapper.grad_norm).items():
            own = skipped.to(value.device)  # with FSDP2's cpu_offload, gradients are in the CPU's memory
            self.sums[key] = self.sums.get(key, 0) + value.masked_fill(own, 0)
            self.counts[key] = self.counts.get(key, 0) + (~own).long()
        self.steps += 1
        self._count_refusals([refusal for batch in data_batch for refusal in batch.refusals])
        self.tokens += sum(batch.num_tokens for batch in data_batch)
        self.positions += sum(batch.input_ids_BT.numel() for batch in data_batch)
        self.images += sum(len(batch.crops) for batch in data_batch)
        self.needed_flops += self.flops(data_batch) if self.flops is not None else 0
        self.data_time += runner.train_loop.data_time
        self.bar.update(1)
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self._log(runner)

    def _count_refusals(self, refusals: list[Refusal]) -> None:
        for refusal in refusals:
            if refusal.reason not in self.refused:
                logger.warning("left out: %s (others with this reason are only counted)", refusal.message)
            self.refused[refusal.reason] += 1

    def after_train(self, runner) -> None:
        self.bar.close()

    def _log(self, runner) -> None:
        sums = {key: value.tolist() for key, value in self._all_sums().items()}  # the only wait of the interval
        counts = {key: value.tolist() for key, value in self.counts.items()}  # the same in all processes
        made = counts[NORM]
        self.skipped += self.steps - made
        real, positions, tokens, images, flops = (
            sum(own)
            for own in zip(*gather((*self._places(), self.tokens, self.images, self.needed_flops)), strict=True)
        )
        refused = _added(gather(self.refused))
        if not is_main_process():
            self._reset()
            return
        means = {key: _divide(value, counts[key]) for key, value in sums.items() if counts[key]}
        elapsed = time.perf_counter() - self.start
        model = unwrap(runner.model)
        weights = model.weights()
        record = dict(
            stage=self.stage,
            step=runner.iter,
            steps=runner.max_iters,
            lr=runner.optim_wrapper.optimizer.param_groups[0]["lr"],
            loss=sum(weight * sums[name] for name, weight in weights.items() if name in sums) / made if made else None,
            **{f"loss_{name}": means[name] for name in weights if name in means},
            **{f"acc_{name}": means[f"correct_{name}"] for name in weights if f"correct_{name}" in means},
            **{key: means[key] for key in _own_metrics(model) if key in means},
            grad_norm=means.get(NORM),
            tokens_per_s=tokens / elapsed,
            images_per_s=images / elapsed,
            real_tokens_percent=100 * real / positions,
            data_time_percent=100 * self.data_time / elapsed,
            **self._speed(flops / elapsed, model.device),
            peak_memory_gib=_peak_memory_gib(model.device),
            eta_s=(time.perf_counter() - self.begin) / (runner.iter - self.first) * (runner.max_iters - runner.iter),
            **(dict(refused=dict(refused)) if refused else {}),
            **(dict(samples=self.drawn(runner.iter)) if self.drawn is not None else {}),
            **(dict(skipped=self.skipped) if self.skipped else {}),
        )
        with naming(self.file), open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        self.bar.set_postfix_str(_loss(record, 3))
        logger.info(_line(record, _own_metrics(model)))
        runner.call_hook("after_log", kind="train", record=record)
        self._reset()

    def _all_sums(self) -> dict[str, torch.Tensor]:
        """The sums over all processes. The norm of the gradient is the same in all of them already."""
        own = {key: value for key, value in self.sums.items() if key != NORM}
        return sum_over_processes(own) | {key: value for key, value in self.sums.items() if key == NORM}

    def _counts_here(self, key: str) -> bool:
        return key == NORM or is_main_process()

    def _speed(self, speed: float, device: torch.device) -> dict[str, float]:
        """The entries for speed and MFU. speed: FLOPs per second, in all processes together."""
        if self.flops is None:
            return {}
        peak = self.flops.peak(device)
        used = {} if peak is None else dict(mfu_percent=100 * speed / (peak * get_world_size()))
        return dict(tflop_per_s=speed / 1e12, **used)


def _added(counters: list[Counter]) -> Counter:
    return sum(counters, Counter())


def _speed_in_words(tflop_per_s: float) -> str:
    return f"{tflop_per_s:.3g} TFLOP/s" if tflop_per_s >= 1 else f"{1000 * tflop_per_s:.3g} GFLOP/s"


def _loss(record: dict, digits: int) -> str:
    if record["loss"] is None:
        return "all skipped"
    if not any(key.startswith("loss_") for key in record):
        return "nothing to learn: all samples were left out"
    return f"loss {record['loss']:.{digits}f}"


def _own_metrics(model) -> list[str]:
    """What targets count besides right predictions, which are logged as accuracies."""
    return [key for key in model.metrics if not key.startswith("correct_")]


def _line(record: dict, metrics: list[str]) -> str:
    """A log line that is easy to read."""
    parts = [
        f"{record['stage']} {record['step']}/{record['steps']}",
        f"lr {record['lr']:.2e}",
        _loss(record, 4),
    ]
    for key, value in record.items():
        if key.startswith("loss_"):
            parts.append(f"{key[5:]} {value:.4f}")
        if key.startswith("acc_"):
            values = value if isinstance(value, list) else [value]
            parts.append(f"{key.removeprefix('acc_')} acc {'/'.join(f'{100 * v:.1f}' for v in values)} %")
        if key in metrics:
            values = value if isinstance(value, list) else [value]
            parts.append(f"{key} {'/'.join(f'{v:.4g}' for v in values)}")
    eta = int(record["eta_s"])
    if "refused" in record:
        parts.append(f"left out {', '.join(f'{n} ({reason})' for reason, n in record['refused'].items())}")
    if "skipped" in record:
        parts.append(f"{record['skipped']} steps skipped")
    return ", ".join(
        [
            *parts,
            f"{record['tokens_per_s']:.0f} tokens/s",
            f"{record['images_per_s']:.0f} images/s",
            f"padding {100 - record['real_tokens_percent']:.0f} %",
            *([_speed_in_words(record["tflop_per_s"])] if "tflop_per_s" in record else []),
            *([f"MFU {record['mfu_percent']:.0f} % of the bf16 peak"] if "mfu_percent" in record else []),
            f"data {record['data_time_percent']:.0f} %",
            f"peak {record['peak_memory_gib']:.2f} GiB",
            f"{eta // 60}:{eta % 60:02d} left",
        ]
    )


def _divide(value: float | list[float], by: int) -> float | list[float]:
    return [v / by for v in value] if isinstance(value, list) else value / by


def _peak_memory_gib(device: torch.device) -> float:
    """The peak memory of the GPU; on the CPU, the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resident_bytes() / 2**30


def forget_after(file: Path, stage: str, step: int) -> None:
    """Remove the lines of this stage after ``step``, since a resumed run writes them again."""
    if file.is_file():
        complete, _, _ = file.read_text(encoding="utf-8").rpartition("\n")  # a kill may have cut the last line
        lines = [json.loads(line) for line in complete.splitlines()]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        replace_text(file, "".join(json.dumps(line) + "\n" for line in kept))
