"""Metrics count the answers to questions. A config names their classes in ``metrics``."""

from collections import defaultdict
from collections.abc import Iterable

from mmengine.config import Config
from PIL import Image

from asvr.data.image_sources import is_base64
from asvr.data.refusals import Refusal
from asvr.registry import METRICS

NO_KIND = "all"
DEFAULT = (dict(type="ExactMatch"),)
ACCURACY = "accuracy"
OF_EXACT_MATCH = (ACCURACY, "right", "total", "by_kind")
LOOKED_AT = 1000  # the number of questions that are searched for one that can be asked
# Other names in a result, in a line of validation.jsonl and in `asvr.benchmarks.questions`.
TAKEN = ("losses", "codes", "codes_by_place", "refused", "seconds", "examples", "made_with", "asked")
TAKEN += ("stage", "step", "steps")


def normalise(answer: str) -> str:
    """An answer in lower case, without outer blanks and without a closing full stop."""
    return answer.strip().rstrip(".").strip().lower()


def row_of(dataset, i: int, item: dict, answer: str) -> dict:
    """A line of ``answers.jsonl``. item: question ``i`` of the dataset."""
    if item["answer"] is None:
        raise ValueError(
            f"{item['sample_id']}: this question has no answer to compare with; its record must end with a 'gpt' turn"
        )
    record = dataset.record(i)
    return dict(
        id=item["sample_id"],
        record_id=record.get("id"),
        image=_image_names(record.get("image"), item["images"]),
        kind=record.get("category", NO_KIND),
        question=item["question"],
        expected=item["answer"],
        answer=answer,
        right=normalise(answer) == normalise(item["answer"]),
    )


def _image_names(named, images: list):
    """As the record names its images; where it holds them itself, where they are."""
    own = named if isinstance(named, list | tuple) else [named]
    if named is not None and all(isinstance(name, str) and not is_base64(name) for name in own):
        return named
    names = ["in the record" if isinstance(image, Image.Image) else str(image) for image in images]
    return names if len(names) > 1 else next(iter(names), None)


class Metric:
    """The base class of metrics. A metric computes numbers from the answers of one evaluation.

    A new instance is built for each evaluation. A metric of your own is any class in `METRICS` that has these two
    methods. Its constructor takes the fields of its entry in the config. If there are several processes, the first one
    counts all answers.

    A metric may have two more methods. ``ask(live, folder)`` asks the model itself: all processes call it before the
    answers are counted, with an `asvr.evaluation.live.LiveModel` and a folder for files of its own. ``check()`` is
    called in the first process before a run begins: it raises ``ValueError`` if something is missing, and returns
    the names of the numbers that ``ask`` will find.
    """

    def update(self, row: dict) -> None:
        """Count one answer. It is called for each question, in the order of the data.

        row: a line of ``answers.jsonl``: id, record_id, image (its name or names, or None), kind, question, expected,
        answer (texts) and right (a bool).
        """
        raise NotImplementedError(f"{type(self).__name__} must count an answer")

    def compute(self) -> dict[str, float]:
        """The numbers by name. At least one answer was counted before. Names of two metrics must differ."""
        raise NotImplementedError(f"{type(self).__name__} must return its numbers")


@METRICS.register_module()
class ExactMatch(Metric):
    """The share of right answers (``accuracy``, in [0, 1]), overall and by kind of question, with counts.

    An answer is right if it equals the expected one. Case, outer blanks and a closing full stop do not count.
    """

    def __init__(self):
        self.by_kind: dict[str, list[bool]] = defaultdict(list)

    def update(self, row: dict) -> None:
        self.by_kind[row["kind"]].append(row["right"])

    def compute(self) -> dict:
        everything = [right for rights in self.by_kind.values() for right in rights]
        return dict(
            accuracy=sum(everything) / len(everything),
            right=sum(everything),
            total=len(everything),
            by_kind={kind: dict(accuracy=sum(r) / len(r), total=len(r)) for kind, r in sorted(self.by_kind.items())},
        )


def build_metrics(configs: Iterable[dict]) -> list[tuple[str, Metric]]:
    """Build the metrics that a config names. Each comes with its type."""
    return [(config["type"], METRICS.build(config)) for config in configs]


def count(metrics: Iterable[dict], rows: Iterable[dict]) -> dict:
    """Build the metrics that a config names, and call `count_with`."""
    return count_with(build_metrics(metrics), rows)


def count_with(built: list[tuple[str, Metric]], rows: Iterable[dict]) -> dict:
    """The numbers of all metrics by name.

    Raises ``ValueError`` if a metric returns something else than numbers, or uses a name that is taken.
    """
    found = {}
    for row in rows:
        for _, metric in built:
            metric.update(dict(row))
    for kind, metric in built:
        own = metric.compute()
        if not isinstance(own, dict):
            raise ValueError(f"metrics: {kind}.compute() returned {own!r}: expected a dict of numbers by name")
        for name, value in own.items():
            if name in TAKEN or name in found or (name in OF_EXACT_MATCH and not isinstance(metric, ExactMatch)):
                raise ValueError(
                    f"metrics: {kind} uses the name {name!r}, which is taken: give its number another name"
                )
            if not isinstance(metric, ExactMatch) and not is_number(value):
                raise ValueError(f"metrics: {kind} returned {name}={value!r}: expected an int or a float")
        found |= own
    return found


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def own_numbers(result: dict) -> dict[str, float | list[float]]:
    """The numbers of a result that come from metrics of your own and from targets. Targets may give lists."""
    return {key: value for key, value in result.items() if key not in (*TAKEN, *OF_EXACT_MATCH)}


def require_best(best: str, result: dict) -> None:
    """Raise ``ValueError`` if no metric gives the number that decides which weights are best."""
    names = [key for key in (ACCURACY, *own_numbers(result)) if key in result and not isinstance(result[key], list)]
    if best not in names:
        raise ValueError(
            f"validation.best={best!r}: no metric of validation.metrics gives that number; expected one of {names}"
        )


def check_metrics(section: Config, dataset) -> None:
    """Check the metrics of an ``evaluation`` or a ``validation`` before anything is trained.

    Metrics that ask the model say what is missing. All metrics count one question of the data, as if it had been
    answered right. Raises as `count_with` and `require_best` do.
    """
    built = build_metrics(section.get("metrics", DEFAULT))
    later = [name for _, metric in built if hasattr(metric, "check") for name in metric.check()]
    for i in range(min(len(dataset), LOOKED_AT)):
        item = dataset.question(i)
        if not isinstance(item, Refusal) and item["answer"] is not None:
            result = count_with(built, [row_of(dataset, i, item, item["answer"])])
            if "best" in section:
                require_best(section.best, result | dict.fromkeys(later, 0.0))
            return
