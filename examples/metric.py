"""Metrics of your own, for answers with several words.

``configs/examples/metric.py`` names this file in ``custom_imports``. It names the classes by ``type`` in the lists
``evaluation.metrics`` and ``validation.metrics``. ``validation.best`` names the number that chooses the best weights.
"""

from collections import Counter

from asvr.evaluation.metrics import Metric, normalise
from asvr.registry import METRICS


@METRICS.register_module()
class WordF1(Metric):
    """The mean F1 of the words of answers, as in SQuAD: the words that an answer shares with the expected one."""

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
    """The share of "yes" among the answers to yes-or-no questions. A fair model is near one half."""

    def __init__(self):
        self.yes, self.asked = 0, 0

    def update(self, row: dict) -> None:
        if normalise(row["expected"]) in ("yes", "no"):
            self.yes += normalise(row["answer"]) == "yes"
            self.asked += 1

    def compute(self) -> dict[str, float]:
        return dict(yes_share=self.yes / max(1, self.asked), yes_no_questions=self.asked)
