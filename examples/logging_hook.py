"""A hook of one's own: it writes chosen numbers to a CSV file, and logs each new lowest loss.

configs/examples/logging_hook.py uses it, beside TensorBoard.
"""

from pathlib import Path

from mmengine.hooks import Hook

from asvr.base.log import logger
from asvr.registry import HOOKS


@HOOKS.register_module()
class CsvHook(Hook):
    """file: in the folder of the stage's logs. keys: of a record in metrics.jsonl."""

    def __init__(self, *, file: str = "losses.csv", keys: tuple[str, ...] = ("loss", "lr")):
        self.file, self.keys = file, tuple(keys)
        self.lowest = float("inf")

    # Checkpoints hold this, and a run that goes on gives it back.

    def state_dict(self) -> dict:
        return dict(lowest=self.lowest)

    def load_state_dict(self, state: dict) -> None:
        self.lowest = state["lowest"]

    # Any method of MMEngine's Hook that the training loop calls: before_train, before_train_iter, after_train_iter,
    # after_train. And after_log: for each record of the log, in the first process alone.

    def before_train(self, runner) -> None:
        """A run that goes on keeps the lines up to its checkpoint."""
        self.path = Path(runner.work_dir) / self.file
        lines = self.path.read_text().splitlines()[1:] if self.path.is_file() else []
        kept = [line for line in lines if int(line.split(",")[0]) <= runner.iter]
        self.path.write_text("\n".join([",".join(("step", *self.keys)), *kept]) + "\n")

    def after_log(self, runner, kind: str, record: dict) -> None:
        """kind: train or validation. record: what metrics.jsonl or validation.jsonl gets."""
        if kind != "train":
            return
        with open(self.path, "a") as stream:
            stream.write(",".join(str(record.get(key, "")) for key in ("step", *self.keys)) + "\n")
        if record["loss"] is not None and record["loss"] < self.lowest:
            self.lowest = record["loss"]
            logger.info("lowest loss so far: %.4f at step %d", self.lowest, record["step"])
