"""A metric of your own. It computes numbers from the answers of an evaluation."""

from asvr.evaluation.metrics import Metric, normalise
from asvr.registry import METRICS


@METRICS.register_module()
class MyComponent(Metric):
    """The share of the expected answer's words that are in the answer, and the mean length of an answer.

    name: the name of the share in logs and results.
    """

    def __init__(self, *, name: str = "my_component"):
        self.name, self.shares, self.lengths = name, [], []

    def update(self, row: dict) -> None:
        """Count one answer. row: id, record_id, image, kind, question, expected, answer and right."""
        answer, expected = (normalise(row[key]).split() for key in ("answer", "expected"))
        self.shares.append(sum(word in answer for word in expected) / max(1, len(expected)))
        self.lengths.append(len(answer))

    def compute(self) -> dict[str, float]:
        """Return numbers by name. No other metric may use the same names."""
        count = max(1, len(self.shares))
        return {self.name: sum(self.shares) / count, f"{self.name}_words": sum(self.lengths) / count}
