"""A metric of your own: what is computed from the answers of an evaluation."""

from asvr.evaluation.metrics import Metric, normalise
from asvr.registry import METRICS


@METRICS.register_module()
class MyComponent(Metric):
    """The share of words of the expected answer that the answer has too, and the mean length of an answer.

    name: of the share in logs and results.
    """

    def __init__(self, *, name: str = "my_component"):
        self.name, self.shares, self.lengths = name, [], []

    def update(self, row: dict) -> None:
        """Count one answer. row: id, record_id, image, kind, question, expected, answer and right."""
        answer, expected = (normalise(row[key]).split() for key in ("answer", "expected"))
        self.shares.append(sum(word in answer for word in expected) / max(1, len(expected)))
        self.lengths.append(len(answer))

    def compute(self) -> dict[str, float]:
        """Numbers by name; no other metric may use the same name."""
        count = max(1, len(self.shares))
        return {self.name: sum(self.shares) / count, f"{self.name}_words": sum(self.lengths) / count}
