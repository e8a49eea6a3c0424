"""A hook of your own: it writes chosen numbers to a CSV file, and logs each new lowest loss.

configs/examples/logging_hook.py uses it together with TensorBoard.
"""

from pathlib import Path

from mmengine.hooks import Hook

from asvr.base.log import logger
from asvr.registry import HOOKS


@HOOKS.register_module()
class CsvHook(Hook):
    """Writes numbers to a CSV file. file: its name in the folder of the stage's logs. keys: keys in metrics.jsonl."""

    def __init__(self, *, file: str = "losses.csv", keys: tuple[str, ...] = ("loss", "lr")):
        self.file, self.keys = file, tuple(keys)
        self.lowest = float("inf")

    # Checkpoints hold this state, and a resumed run loads it.

    def state_dict(self) -> dict:
        return dict(lowest=self.lowest)

    def load_state_dict(self, state: dict) -> None:
        self.lowest = state["lowest"]

    # The training loop calls these methods of MMEngine's Hook: before_train, before_train_iter, after_train_iter and
    # after_train. It also calls after_log for each record of the log, only in the first process.

    def before_train(self, runner) -> None:
        """Begin the file. A resumed run keeps the lines up to its checkpoint."""
        self.path = Path(runner.work_dir) / self.file
        lines = self.path.read_text().splitlines()[1:] if self.path.is_file() else []
        kept = [line for line in lines if int(line.split(",")[0]) <= runner.iter]
        self.path.write_text("\n".join([",".join(("step", *self.keys)), *kept]) + "\n")

    def after_log(self, runner, kind: str, record: dict) -> None:
        """Write one line. kind: train or validation. record: the record of metrics.jsonl or validation.jsonl."""
        if kind != "train":
            return
        with open(self.path, "a") as stream:
            stream.write(",".join(str(record.get(key, "")) for key in ("step", *self.keys)) + "\n")
        if record["loss"] is not None and record["loss"] < self.lowest:
            self.lowest = record["loss"]
            logger.info("lowest loss so far: %.4f at step %d", self.lowest, record["step"])
