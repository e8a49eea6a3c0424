"""Rules that translate key names of other software to ours. Every key is used, or ignored for a stated reason."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from asvr.base.checkpoint_files import Checkpoint


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """How a foreign key becomes one of ours.

    pattern: matches the whole foreign key. to: our key, with groups as ``\\1``, or a function of the match. how: a
    function that changes the tensor.
    """

    pattern: str
    to: str | Callable[[re.Match], str]
    how: Callable[[Tensor], Tensor] = _same


@dataclass(frozen=True)
class Ignored:
    """Keys that are not needed, and why."""

    pattern: str
    why: str


def sort_keys(keys: Iterable[str], rules: list) -> tuple[dict[str, tuple[str, Rule]], dict[str, str], list[str]]:
    """Sort foreign keys by the first rule that matches.

    Returns our key -> (foreign key, rule), foreign key -> why it is ignored, and the keys that no rule matches.
    """
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
    """Translate all tensors to our keys, in the dtypes of ``expected`` (the state dict that they are loaded into).

    made: patterns of our keys that the caller adds itself. Raises ``ValueError`` with every key that is missing, is
    unexpected, has another shape, or holds other values than finite floating-point numbers (quantised or damaged
    weights).
    """
    used, _, unknown = sort_keys(checkpoint.keys(), rules)
    needed = {key for key in expected if not any(re.fullmatch(pattern, key) for pattern in made)}
    missing = sorted(needed - used.keys())
    surplus = sorted(used[key][0] for key in used.keys() - needed)
    problems = dict(missing=missing, unexpected=sorted(unknown) + surplus, misshaped=[], unusable=[])
    tensors = {}
    for key in sorted(needed & used.keys()):
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
