"""Metrics of one's own, for answers of more than a word.

``configs/examples/metric.py`` names this file in ``custom_imports``, and the classes by ``type`` in the lists
``evaluation.metrics`` and ``validation.metrics``; ``validation.best`` names the number that chooses the best weights.
"""

from collections import Counter

from asvr.evaluation.metrics import Metric, normalise
from asvr.registry import METRICS


@METRICS.register_module()
class WordF1(Metric):
    """How many words an answer shares with the expected one: the F1 of each answer (SQuAD's), and their mean."""

    def __init__(self, *, name: str = "word_f1"):
        self.name, self.values = name, []

    def update(self, row: dict) -> None:
        """row: a line of ``answers.jsonl``."""
        answer, expected = (normalise(row[key]).split() for key in ("answer", "expected"))
        shared = sum((Counter(answer) & Counter(expected)).values())
        self.values.append(2 * shared / max(1, len(answer) + len(expected)))

    def compute(self) -> dict[str, float]:
        return {self.name: sum(self.values) / len(self.values)}


@METRICS.register_module()
class YesShare(Metric):
    """How often a model says yes where yes or no is expected: half of them would be fair."""

    def __init__(self):
        self.yes, self.asked = 0, 0

    def update(self, row: dict) -> None:
        if normalise(row["expected"]) in ("yes", "no"):
            self.yes += normalise(row["answer"]) == "yes"
            self.asked += 1

    def compute(self) -> dict[str, float]:
        return dict(yes_share=self.yes / max(1, self.asked), yes_no_questions=self.asked)
