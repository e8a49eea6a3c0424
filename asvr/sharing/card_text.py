"""The text of a model card."""

from typing import Any, NamedTuple

from asvr.base.text import table
from asvr.base.version import asvr_version

Counts = dict[str, int]  # parameters by component
LEVEL = 0.95
NOT_STATED = "not stated"


class Accuracy(NamedTuple):
    """The share of right answers to ``total`` questions, with its 95 % Wilson confidence interval."""

    share: float
    low: float
    high: float
    total: int

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f} %)"


def wilson(result: dict) -> Accuracy | None:
    """The accuracy of a result with its interval. None if the result has no ``accuracy`` or ``total``."""
    share, total = result.get("accuracy"), result.get("total")
    if not isinstance(share, int | float) or not isinstance(total, int) or total < 1 or not 0 <= share <= 1:
        return None
    from scipy.stats import binomtest  # here: it takes a while to import

    interval = binomtest(round(share * total), total).proportion_ci(LEVEL, method="wilson")
    return Accuracy(float(share), float(interval.low), float(interval.high), total)


def body(description: dict, facts: dict, counts: Counts, terms: dict, *, name: str, load: str | None) -> str:
    """The text below the metadata.

    description: ``asvr.json``. facts: ``training.json``, or {} if there is none. terms: the fields of the licence.
    load: the model's name on the Hub, None if it has none.
    """
    stages = facts.get("stages", [])
    sections = [
        f"# {name}\n\n{_what(description, facts)}",
        f"## Parts\n\n{_parts(description, facts, counts)}",
        f"## How to use it\n\n{_use(description, load)}",
        f"## Training data\n\n{_data(stages)}" if stages else "",
        f"## Training recipe\n\n{_recipe(stages)}" if stages else "",
        f"## Results\n\n{_results(facts.get('results') or {})}",
        f"## Training details\n\n{_details(description, stages)}" if stages else "",
        f"## Licence\n\n{_licence(terms)}",
        f"## Limits\n\n{_limits(stages)}",
    ]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections if section)


def named(component: Any) -> str:
    """A component of a config in one line, such as ``EasyVQA (split=train)``."""
    if not isinstance(component, dict):
        return NOT_STATED if component is None else str(component)
    fields = [f"{key}={_value(value)}" for key, value in component.items() if key != "type" and value is not None]
    return f"{component.get('type', '')} ({', '.join(fields)})".strip() if fields else str(component.get("type", ""))


def _value(value: Any) -> str:
    if isinstance(value, dict) and "type" in value:
        return named(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return str(value)


def _what(description: dict, facts: dict) -> str:
    targets = [entry for entry in description["model"].get("reconstruction") or [] if isinstance(entry, dict)]
    text = "This is a vision-language model: it reads images and text, and answers in text. "
    text += f"It was trained with asvr {_version(facts)}." if facts else "It is saved in the format of asvr."
    if targets and facts:
        names = ", ".join(str(entry.get("name")) for entry in targets)
        text += f" In training it also reconstructed its input images, by these targets: {names}."
    if facts.get("averaged"):
        text += " Its weights are averages over the training steps (EMA)."
    return text


def _version(facts: dict) -> str:
    machines = [stage["machine"] for stage in facts.get("stages", []) if isinstance(stage.get("machine"), dict)]
    return str(machines[-1].get("asvr", asvr_version())) if machines else asvr_version()


def _parts(description: dict, facts: dict, counts: Counts) -> str:
    own = facts.get("parts") or [
        dict(part=part, type=(description["model"].get(part) or {}).get("type")) for part in ("encoder", "llm")
    ]
    rows = [[_cell(part.get("part")), _cell(part.get("type")), _cell(_made_from(part))] for part in own]
    text = table(["part", "type", "made from"], rows)
    if counts:
        parts = ", ".join(f"{part} {_millions(number)}" for part, number in counts.items())
        text += f"\nParameters: {_millions(sum(counts.values()))} in all ({parts})."
    return text


def _made_from(part: dict) -> str:
    if part.get("weights"):
        model = f", {part['model']}" if part.get("model") else ""
        return f"{part['weights']}{model}"
    if part.get("fitted"):
        return "fitted on the training images"
    if part.get("arch"):
        return f"{part['arch']}, trained from random weights"
    return NOT_STATED


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1e5 else f"{number:,}"


def _use(description: dict, load: str | None) -> str:
    where = load or "path/to/this/folder"
    trust = ", trust_custom_imports=True" if description.get("custom_imports") else ""
    text = (
        "```python\nimport asvr\n\n"
        f'model = asvr.load("{where}"{trust})\n'
        'print(model.chat("image.jpg", "What is in the image?"))\n```\n\n'
        f"On the command line:\n\n```bash\nasvr chat {where}{' --trust-custom-imports' if trust else ''}\n```\n\n"
        "For transformers, convert it first. If the model has parts that transformers does not have, the command says "
        f"so:\n\n```bash\nasvr convert export {where} exported\n```\n\n"
        "```python\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'model = AutoModelForImageTextToText.from_pretrained("exported")\n'
        'processor = AutoProcessor.from_pretrained("exported", backend="pil")\n```\n'
    )
    if trust:
        text += (
            "\nIts components are in Python modules of its author, which do not come with it. Install them first; "
            "`trust_custom_imports` runs them.\n"
        )
    return text


def _data(stages: list[dict]) -> str:
    rows = [
        [
            *(_cell(stage.get("name")), _cell(named(stage.get("data")))),
            *(_cell(_number(stage.get("samples"))), _cell(stage.get("data_fingerprint", NOT_STATED))),
        ]
        for stage in stages
    ]
    return table(["stage", "data set", "samples", "fingerprint"], rows)


def _recipe(stages: list[dict]) -> str:
    rows = [
        [
            *(_cell(stage.get("name")), _cell(stage.get("init")), _cell(_number(stage.get("steps")))),
            *(_cell(stage.get("global_batch")), _cell(named(stage.get("optim"))), _cell(named(stage.get("schedule")))),
            _cell(", ".join(map(str, stage.get("train", [])))),
        ]
        for stage in stages
    ]
    text = table(["stage", "starts from", "steps", "samples a step", "optimiser", "schedule", "trains"], rows)
    targets = [(stage.get("name"), target) for stage in stages for target in stage.get("targets", [])]
    if targets:
        text += "\n" + table(
            ["stage", "target", "weight in the loss", "shift", "other parts"],
            [
                [_cell(name), _cell(own.get("name")), _cell(own.get("weight")), _cell(own.get("shift")), _others(own)]
                for name, own in targets
            ],
        )
    transforms = [(stage.get("name"), own) for stage in stages for own in stage.get("transforms", [])]
    return text + "".join(f"\nStage {name} changed the model by {named(own)}.\n" for name, own in transforms)


def _others(target: dict) -> str:
    return _cell(", ".join(f"{k}: {_value(v)}" for k, v in target.items() if k not in ("name", "weight", "shift")))


def _results(result: dict) -> str:
    total = wilson(result)
    numbers = {key: value for key, value in result.items() if _is_number(value)}
    if total is None and not numbers:
        return "No results were stored with this model."
    text = f"Data: {named(result.get('dataset'))}, fingerprint {result.get('data_fingerprint', NOT_STATED)}.\n\n"
    if total is not None:
        kinds = result.get("by_kind") if isinstance(result.get("by_kind"), dict) else {}
        found = {"all": total, **{kind: wilson(own) for kind, own in kinds.items() if kind != "all"}}
        rows = [[_cell(kind), _number(own.total), str(own)] for kind, own in found.items() if own is not None]
        text += table(["questions", "number", "right, with 95 % interval"], rows)
        text += (
            "\nThe intervals are Wilson confidence intervals. They take all questions as independent, also those about "
            "one image.\n"
        )
    rest = [
        [_cell(key), _rounded(value)] for key, value in numbers.items() if key not in ("accuracy", "right", "total")
    ]
    rest += [[f"loss of {_cell(key)} (nats per token)", _rounded(v)] for key, v in (result.get("losses") or {}).items()]
    codes = result.get("codes") or {}
    rest += [[f"codes of {_cell(key)} right, by depth", _shares(values)] for key, values in codes.items()]
    return text + ("\n" + table(["number", "value"], rest) if rest else "")


def _shares(values: Any) -> str:
    values = values if isinstance(values, list) else [values]
    return ", ".join(f"{100 * value:.1f} %" if _is_number(value) else str(value) for value in values)


def _details(description: dict, stages: list[dict]) -> str:
    rows = [
        [
            *(_cell(stage.get("name")), _cell(_hardware(stage.get("machine"))), _cell(_speed(stage.get("speed")))),
            _cell(stage.get("seed", NOT_STATED)),
        ]
        for stage in stages
    ]
    text = table(["stage", "machine and versions", "median speed", "seed"], rows)
    return f"{text}\nPrecision: {description.get('precision') or NOT_STATED}.\n"


def _hardware(machine: Any) -> str:
    if not isinstance(machine, dict):
        return NOT_STATED
    versions = ", ".join(
        f"{key} {machine[key]}" for key in ("python", "torch", "transformers", "asvr") if key in machine
    )
    return f"{machine.get('processes', 1)} process(es) on {machine.get('device')}, {versions}"


def _speed(speed: Any) -> str:
    if not isinstance(speed, dict):
        return NOT_STATED
    units = dict(images_per_s="images/s", tokens_per_s="tokens/s", peak_memory_gib="GiB at most in one process")
    return ", ".join(f"{speed[key]} {unit}" for key, unit in units.items() if key in speed)


def _licence(terms: dict) -> str:
    if terms.get("license") is None:
        return "The licence is not stated. Licences of the parts and of the training data apply."
    name, link = terms.get("license_name"), terms.get("license_link")
    text = f"{name} ({terms['license']})" if name else terms["license"]
    return (
        f"Licence: {f'[{text}]({link})' if link else text}. Licences of the parts and of the training data apply too."
    )


def _limits(stages: list[dict]) -> str:
    seen = f" It was trained on {_number(stages[-1]['samples'])} samples in its last stage." if _samples(stages) else ""
    return (
        f"Only the numbers under Results were measured.{seen} The model can be wrong. It can repeat errors and bias of "
        "its training data and of the models that it was made from. Bias, safety, and languages that are not in the "
        "training data were not tested unless the results above say so."
    )


def _samples(stages: list[dict]) -> bool:
    return bool(stages) and isinstance(stages[-1].get("samples"), int)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else _cell(value)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NOT_STATED


def _cell(value: Any) -> str:
    """A value as text for one cell of a table."""
    return " ".join(str(NOT_STATED if value is None else value).split()).replace("|", "\\|")
