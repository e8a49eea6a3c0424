"""The plain fields of a config, section by section: what each may hold.

Components (dicts with ``type``) are not listed here: their fields are the arguments of their constructors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from asvr.base.text import nearest, short
from asvr.data.images import LARGEST_LIMIT
from asvr.data.transforms import ASPECTS
from asvr.models.tree import TRAINABLE

SHIFTS = (0, 1)


@dataclass(frozen=True)
class Field:
    """expected: what `test` accepts, in words."""

    expected: str
    test: Callable[[Any], bool]
    required: bool = True


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return _is_int(value) or isinstance(value, float)


def one_of(*choices, required: bool = True) -> Field:
    def test(value) -> bool:
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices)

    return Field("one of " + ", ".join(map(repr, choices)), test, required)


def count(low: int = 1, required: bool = True) -> Field:
    return Field(f"a whole number, at least {low}", lambda value: _is_int(value) and value >= low, required)


def number(low: float, high: float = float("inf"), *, above: bool = False, required: bool = True) -> Field:
    """A number from ``low`` (or above it) to below ``high``."""
    words = f"a number {'above' if above else 'from'} {low}" + (f" to below {high}" if high < float("inf") else "")

    def test(value) -> bool:
        return _is_number(value) and (low < value if above else low <= value) and value < high

    return Field(words, test, required)


def optional(field: Field) -> Field:
    """The field, or None; it may be left out."""
    return Field(f"{field.expected}, or None", lambda value: value is None or field.test(value), required=False)


COMPONENT = Field("a component, dict(type=...)", lambda value: isinstance(value, dict))
NAME = Field(
    "a name of letters, digits and _, and none that torch's modules have themselves ('half', 'train', 'keys')",
    lambda value: isinstance(value, str) and value.isidentifier() and not hasattr(nn.ModuleDict, value),
)

TARGET = dict(  # of a CodeTarget
    type=Field("the name of a target", lambda value: isinstance(value, str), required=False),
    name=NAME,
    tokenizer=COMPONENT,
    head=COMPONENT,
    loss=Field(COMPONENT.expected, COMPONENT.test, required=False),
    weight=Field(
        f"{number(0).expected}, or dict(begin=..., end=..., until=...)",
        lambda v: number(0).test(v) or isinstance(v, dict),  # whose values the target tells
        required=False,
    ),
    shift=one_of(*SHIFTS),
    tap=Field("-1 (after the final norm) or the number of a layer", lambda v: _is_int(v) and v >= -1, required=False),
    resample=one_of(None, "nearest", required=False),
    supervise=Field(
        f"{count().expected}, dict(every=...), dict(cells=[...]) or None",
        lambda v: v is None or count().test(v) or isinstance(v, dict),
        required=False,
    ),
    fit=Field("a dict of arguments of the tokenizer's fit()", lambda v: isinstance(v, dict), required=False),
)

PRESETS = ("cosine", "linear", "constant", "wsd")  # of `schedule`
EMA = dict(decay=number(0, 1), evaluate=one_of(True, False, required=False))  # `runtime.ema`
PROFILE = dict(  # `runtime.profile`
    steps=Field(
        "the first and the last step to profile, two whole numbers from 1",
        lambda v: (
            isinstance(v, list | tuple) and len(v) == 2 and all(count().test(step) for step in v) and v[0] <= v[1]
        ),
    ),
    memory=one_of(True, False, required=False),
)
GROUP = dict(  # of `optim.groups`
    lr_scale=number(0, required=False),
    weight_decay=number(0, required=False),
    layer_decay=Field("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1, required=False),
    muon=Field("True or False", lambda value: isinstance(value, bool), required=False),
)

SOURCE = dict(  # of a mixture
    dataset=COMPONENT,
    weight=optional(number(0, above=True)),
    name=Field("a name, or None", lambda value: value is None or isinstance(value, str), required=False),
)


def is_pack(value) -> bool:
    known = dict(max_tokens=count(), max_images=optional(count()))
    return isinstance(value, bool) or (
        isinstance(value, dict) and all(key in known and known[key].test(item) for key, item in value.items())
    )


METRICS = Field(
    "a list of metrics, [dict(type=...), ...]",
    lambda value: isinstance(value, list | tuple) and len(value) > 0,
    required=False,
)

SECTIONS = dict(
    published=dict(  # what a paper reports of the row that this config stands for; training does not read it
        table=Field("the table's name, 'T1'", lambda v: isinstance(v, str) and v != ""),
        row=Field("the row's name", lambda v: isinstance(v, str) and v != ""),
        average=number(0),
        scores=Field(
            "a dict of a number for each column",
            lambda v: isinstance(v, dict) and len(v) > 0 and all(number(0).test(score) for score in v.values()),
        ),
        differs=Field(
            "a list of texts: what this config does in another way",
            lambda v: isinstance(v, list | tuple) and all(isinstance(text, str) for text in v),
        ),
    ),
    data=dict(
        train=COMPONENT,
        template=Field("the name of a template, or dict(type=...)", lambda value: isinstance(value, str | dict)),
        max_length=count(),
        image_aspect=one_of(*ASPECTS),
        on_error=one_of("raise", "skip"),
        max_pixels=optional(
            Field(f"a whole number from 1 to {LARGEST_LIMIT}", lambda v: _is_int(v) and 1 <= v <= LARGEST_LIMIT)
        ),
        micro_batch=count(),
        global_batch=count(),
        num_workers=count(0),
        worker_timeout=optional(number(0, above=True)),
        cache=one_of(True, False, "codes", required=False),
        pack=Field("True, False or dict(max_tokens=..., max_images=...)", is_pack, required=False),
        group=one_of(None, "length", "modality", required=False),
        cache_budget_gb=optional(number(0, above=True)),
        cache_dir=Field("a folder's name, or None", lambda v: v is None or isinstance(v, str), required=False),
    ),
    optim=dict(
        type=Field("the name of an optimiser", lambda value: isinstance(value, str)),
        lr=number(0, above=True),
        betas=Field(
            "two numbers from 0 to below 1",
            lambda value: (
                isinstance(value, list | tuple) and len(value) == 2 and all(number(0, 1).test(v) for v in value)
            ),
            required=False,
        ),
        weight_decay=number(0, required=False),
        clip_grad=Field("a number above 0, or None", lambda v: v is None or number(0, above=True).test(v)),
        precision=one_of("float32", "bf16"),
        lr_scale=Field(
            f"dict of a factor for any of {', '.join(TRAINABLE)}",
            lambda v: isinstance(v, dict) and all(k in TRAINABLE and number(0).test(f) for k, f in v.items()),
            required=False,
        ),
        groups=Field(
            f"dict of a dict for any of {', '.join(TRAINABLE)}",
            lambda v: isinstance(v, dict) and all(k in TRAINABLE for k in v),
            required=False,
        ),
    ),
    schedule=dict(
        epochs=number(0, above=True, required=False),
        steps=count(required=False),
        preset=one_of(*PRESETS, required=False),
        warmup_ratio=number(0, 1, required=False),
        min_lr_ratio=number(0, 1, required=False),
        decay_ratio=number(0, 1, above=True, required=False),
        param_schedulers=Field("a list of dict(type=...)", lambda v: isinstance(v, list | tuple) and v, required=False),
    ),
    evaluation=dict(
        dataset=COMPONENT,
        batch_size=count(required=False),
        max_new_tokens=count(required=False),
        limit=optional(count()),
        num_examples=count(0, required=False),
        metrics=METRICS,
    ),
    validation=dict(
        dataset=COMPONENT,
        interval=count(),
        batch_size=count(required=False),
        max_new_tokens=count(required=False),
        limit=optional(count()),
        metrics=METRICS,
        best=Field(
            "the name of a number that a metric gives", lambda v: isinstance(v, str) and v != "", required=False
        ),
    ),
    runtime=dict(
        seed=count(0),
        device=Field("'auto', 'cpu', 'cuda' or 'cuda:0'", lambda v: isinstance(v, str) and is_device(v)),
        log_interval=count(),
        checkpoint_interval=count(),
        keep_checkpoints=count(),
        max_skipped=count(0, required=False),
        async_checkpoint=one_of(True, False, required=False),
        attention=one_of("auto", "sdpa", "xformers", "varlen", required=False),
        compile=one_of(True, False, required=False),
        ema=optional(Field("dict(decay=...)", lambda v: isinstance(v, dict))),
        profile=optional(Field("dict(steps=(FIRST, LAST))", lambda v: isinstance(v, dict))),
    ),
)


def is_device(value: str) -> bool:
    kind, _, index = value.partition(":")
    return value in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit())


def check_fields(key: str, value: Any, fields: dict[str, Field]) -> list[str]:
    """The problems of one section (``key`` is its place in the config): unknown, missing and wrong fields."""
    if not isinstance(value, dict):
        return [f"{key}={short(value)}: expected a dict with {', '.join(fields)}"]
    problems = [f"{key}.{name}: unknown field; {nearest(name, fields)}" for name in value if name not in fields]
    for name, field in fields.items():
        if name in value and not field.test(value[name]):
            problems.append(f"{key}.{name}={short(value[name])}: expected {field.expected}")
        elif name not in value and field.required:
            problems.append(f"{key}.{name} is missing: expected {field.expected}")
    return problems
