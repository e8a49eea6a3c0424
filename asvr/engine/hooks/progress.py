"""Progress bar, readable log lines and JSON lines, with one synchronisation an interval."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import torch
from mmengine.hooks import Hook

from asvr.data.refusals import Refusal
from asvr.engine.log import logger, progress_bar
from asvr.engine.parallel import bare
from asvr.engine.processes import gather, get_world_size, is_main_process, sum_over_processes
from asvr.profiling.peak import resident_bytes
from asvr.profiling.step_flops import StepFlops
from asvr.registry import HOOKS

NORM = "grad_norm"
PER_PROCESS = ("tokens", "positions", "images", "needed_flops")  # what each counts of its own samples


@HOOKS.register_module()
class ProgressHook(Hook):
    """Logs means over ``interval`` steps, or over those of them that have the loss at all; of several processes, sums
    over all of them where they share a step, and the first one's times and memory.

    Written to ``file`` as one JSON object a line: step, lr, loss (weighted sum), loss_<name> in nats a token,
    acc_<name> (text) and acc_<target> (a list, one a depth), grad_norm, tokens_per_s and images_per_s (real ones,
    padding not counted), real_tokens_percent (of all positions computed), data_time_percent (of the interval, waiting
    for input), tflop_per_s (of what the samples need: no padding, no recomputation), mfu_percent (of that, in bf16 on
    a GPU whose peak is known), peak_memory_gib, eta_s, refused (reason -> samples left out since the stage began; only
    where there are any).
    """

    priority = "BELOW_NORMAL"

    def __init__(self, *, file: str, stage: str, interval: int, flops: StepFlops | None = None):
        if interval < 1:
            raise ValueError(f"runtime.log_interval={interval} must be at least 1")
        self.file, self.stage, self.interval = Path(file), stage, interval
        self.refused: Counter = Counter()
        self.flops = flops  # None where they cannot be counted
        self._reset()

    def state_dict(self) -> dict:
        """The part of an interval that is done, so that a resumed run writes the same lines."""
        return dict(
            sums=self._all_sums(),
            counts=dict(self.counts),
            steps=self.steps,
            refused=dict(_added(gather(self.refused))),
        )

    def load_state_dict(self, state: dict) -> None:
        self.counts, self.steps = Counter(state["counts"]), state["steps"]
        self.sums = {
            key: value if self._counts_here(key) else torch.zeros_like(value) for key, value in state["sums"].items()
        }
        self.refused = Counter(state["refused"] if is_main_process() else {})

    def before_train(self, runner) -> None:
        if is_main_process():
            forget_after(self.file, self.stage, runner.iter)
        self.bar = progress_bar(total=runner.max_iters, initial=runner.iter, desc=self.stage, unit="step")
        self.sums = {key: value.to(bare(runner.model).device) for key, value in self.sums.items()}
        self.first = runner.iter
        self.begin = self.start = time.perf_counter()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: Counter = Counter()
        self.steps = self.tokens = self.positions = self.images = self.needed_flops = 0
        self.data_time, self.start = 0.0, time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for key, value in dict(outputs, grad_norm=runner.optim_wrapper.grad_norm).items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] += 1
        self.steps += 1
        self._count_refusals([refusal for batch in data_batch for refusal in batch.refusals])
        self.tokens += sum(batch.num_tokens for batch in data_batch)
        self.positions += sum(batch.input_ids_BT.numel() for batch in data_batch)
        self.images += sum(batch.num_images for batch in data_batch)
        self.needed_flops += self.flops(data_batch) if self.flops is not None else 0
        self.data_time += runner.train_loop.data_time
        self.bar.update(1)
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self._log(runner)

    def _count_refusals(self, refusals: list[Refusal]) -> None:
        for refusal in refusals:
            if refusal.reason not in self.refused:
                logger.warning("left out: %s (further ones with this reason are only counted)", refusal.message)
            self.refused[refusal.reason] += 1

    def after_train(self, runner) -> None:
        self.bar.close()

    def _log(self, runner) -> None:
        sums = {key: value.tolist() for key, value in self._all_sums().items()}  # the only wait of the interval
        everyone = gather(dict(refused=self.refused, **{key: getattr(self, key) for key in PER_PROCESS}))
        refused = _added([own["refused"] for own in everyone])
        tokens, positions, images, flops = (sum(own[key] for own in everyone) for key in PER_PROCESS)
        if not is_main_process():
            self._reset()
            return
        means = {key: _divide(value, self.counts[key]) for key, value in sums.items()}
        elapsed = time.perf_counter() - self.start
        model = bare(runner.model)
        weights = model.weights()
        record = dict(
            stage=self.stage,
            step=runner.iter,
            steps=runner.max_iters,
            lr=runner.optim_wrapper.optimizer.param_groups[0]["lr"],
            loss=sum(weight * sums[name] for name, weight in weights.items() if name in sums) / self.steps,
            **{f"loss_{name}": means[name] for name in weights if name in means},
            **{f"acc_{name}": means[f"correct_{name}"] for name in weights if f"correct_{name}" in means},
            grad_norm=means["grad_norm"],
            tokens_per_s=tokens / elapsed,
            images_per_s=images / elapsed,
            real_tokens_percent=100 * tokens / positions,
            data_time_percent=100 * self.data_time / elapsed,
            **self._speed(flops / elapsed, model.device),
            peak_memory_gib=_peak_memory_gib(model.device),
            eta_s=(time.perf_counter() - self.begin) / (runner.iter - self.first) * (runner.max_iters - runner.iter),
            **(dict(refused=dict(refused)) if refused else {}),
        )
        with open(self.file, "a") as stream:
            stream.write(json.dumps(record) + "\n")
        self.bar.set_postfix_str(f"loss {record['loss']:.3f}")
        logger.info(_line(record))
        self._reset()

    def _all_sums(self) -> dict[str, torch.Tensor]:
        """Over all processes; the norm of the gradient is every one's already."""
        own = {key: value for key, value in self.sums.items() if key != NORM}
        return sum_over_processes(own) | {key: value for key, value in self.sums.items() if key == NORM}

    def _counts_here(self, key: str) -> bool:
        return key == NORM or is_main_process()

    def _speed(self, speed: float, device: torch.device) -> dict[str, float]:
        """speed: FLOPs a second of all processes."""
        if self.flops is None:
            return {}
        peak = self.flops.peak(device)
        used = {} if peak is None else dict(mfu_percent=100 * speed / (peak * get_world_size()))
        return dict(tflop_per_s=speed / 1e12, **used)


def _added(counters: list[Counter]) -> Counter:
    return sum(counters, Counter())


def _speed_in_words(tflop_per_s: float) -> str:
    return f"{tflop_per_s:.3g} TFLOP/s" if tflop_per_s >= 1 else f"{1000 * tflop_per_s:.3g} GFLOP/s"


def _line(record: dict) -> str:
    """A log line for people."""
    parts = [
        f"{record['stage']} {record['step']}/{record['steps']}",
        f"lr {record['lr']:.2e}",
        f"loss {record['loss']:.4f}",
    ]
    for key, value in record.items():
        if key.startswith("loss_"):
            parts.append(f"{key[5:]} {value:.4f}")
        if key.startswith("acc_"):
            values = value if isinstance(value, list) else [value]
            parts.append(f"{key.removeprefix('acc_')} acc {'/'.join(f'{100 * v:.1f}' for v in values)} %")
    eta = int(record["eta_s"])
    if "refused" in record:
        parts.append(f"left out {', '.join(f'{n} ({reason})' for reason, n in record['refused'].items())}")
    return ", ".join(
        [
            *parts,
            f"{record['tokens_per_s']:.0f} tokens/s",
            f"{record['images_per_s']:.0f} images/s",
            f"padding {100 - record['real_tokens_percent']:.0f} %",
            *([_speed_in_words(record["tflop_per_s"])] if "tflop_per_s" in record else []),
            *([f"MFU {record['mfu_percent']:.0f} %"] if "mfu_percent" in record else []),
            f"data {record['data_time_percent']:.0f} %",
            f"peak {record['peak_memory_gib']:.2f} GiB",
            f"{eta // 60}:{eta % 60:02d} left",
        ]
    )


def _divide(value: float | list[float], by: int) -> float | list[float]:
    return [v / by for v in value] if isinstance(value, list) else value / by


def _peak_memory_gib(device: torch.device) -> float:
    """Of the accelerator; on the CPU, the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resident_bytes() / 2**30


def forget_after(file: Path, stage: str, step: int) -> None:
    """Drop lines of this stage after ``step``: a resumed run writes them again."""
    if file.is_file():
        whole, _, _ = file.read_text().rpartition("\n")  # a kill may have torn the last line
        lines = [json.loads(line) for line in whole.splitlines()]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        partial = file.with_name(f".{file.name}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, file)
