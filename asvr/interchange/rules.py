"""From the key names of other software to ours, strictly: every key is used, or ignored for a stated reason."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from asvr.base.checkpoint_files import Checkpoint


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """pattern: of the whole foreign key. to: our key, with its groups as ``\\1``, or a function of the match. how: what
    is done to the tensor."""

    pattern: str
    to: str | Callable[[re.Match], str]
    how: Callable[[Tensor], Tensor] = _same


@dataclass(frozen=True)
class Ignored:
    """Keys that are not needed, and why."""

    pattern: str
    why: str


def sort_keys(keys: Iterable[str], rules: list) -> tuple[dict[str, tuple[str, Rule]], dict[str, str], list[str]]:
    """Our key -> (foreign key, rule); foreign key -> why it is ignored; keys that no rule knows. The first rule
    that matches counts."""
    used, ignored, unknown = {}, {}, []
    for key in keys:
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, key)), None)
        if rule is None:
            unknown.append(key)
        elif isinstance(rule, Ignored):
            ignored[key] = rule.why
        else:
            used[re.sub(rule.pattern, rule.to, key)] = (key, rule)
    return used, ignored, unknown


def translate(
    checkpoint: Checkpoint, rules: list, expected: dict[str, Tensor], made: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Our tensors, by our keys, in the dtype of ``expected`` (a state dict of what they are for).

    made: patterns of our keys that the caller makes itself. Raises ``ValueError`` with every key that is missing,
    unexpected, of another shape, or holds no finite floating-point numbers (quantised or damaged weights).
    """
    used, _, unknown = sort_keys(checkpoint.keys(), rules)
    wanted = {key for key in expected if not any(re.fullmatch(pattern, key) for pattern in made)}
    missing = sorted(wanted - used.keys())
    surplus = sorted(used[key][0] for key in used.keys() - wanted)
    problems = dict(missing=missing, unexpected=sorted(unknown) + surplus, misshaped=[], unusable=[])
    tensors = {}
    for key in sorted(wanted & used.keys()):
        foreign, rule = used[key]
        tensor = rule.how(checkpoint[foreign])
        if tensor.shape != expected[key].shape:
            shapes = f"{foreign} {checkpoint.shapes[foreign]}, needed as {key} {tuple(expected[key].shape)}"
            problems["misshaped"].append(shapes)
        elif not tensor.is_floating_point() or not tensor.isfinite().all():
            what = "NaN or infinity" if tensor.is_floating_point() else str(tensor.dtype)
            problems["unusable"].append(f"{foreign} ({what})")
        else:
            tensors[key] = tensor.to(expected[key].dtype)
    found = {kind: keys for kind, keys in problems.items() if keys}
    if found:
        listing = "; ".join(f"{kind}: {', '.join(keys[:8])} ({len(keys)} in all)" for kind, keys in found.items())
        raise ValueError(f"{checkpoint.path} does not fit: {listing}")
    return tensors
