"""Checks that your own components keep their contracts. Each is tried on the meta device, before any weight is read.

Legend: ``I`` images (1 here), ``N`` visual tokens of an image, ``M`` cells of a visual tokenizer's grid, ``E`` encoder
width, ``H`` LLM width, ``D`` code depth, ``C`` code width, ``W`` head width, ``P`` visual positions (2 here).
"""

import logging
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from asvr.base.log_once import log_once
from asvr.data.layouts import ImageLayout, Layout
from asvr.data.transforms import blank_pixels
from asvr.models.batches import full_batch
from asvr.models.encoders.composite import CompositeEncoder
from asvr.models.llms import HFCausalLM
from asvr.models.loss_sums import is_mean
from asvr.models.targets import CodeTarget, Seen, Target
from asvr.models.tokenizers.base import INTEGERS
from asvr.registry import ENCODERS, HEADS, LLMS, LOSSES, PROJECTORS, TARGETS, VISUAL_TOKENIZERS, FullRegistry

LIBRARY = "asvr."  # components of these modules are not tried: the library's tests do that
ROWS, ANY = 2, -1


class _Broken(Exception):
    """A broken contract. Its text says what a component returned and what was expected."""


@torch.no_grad()
def check_contracts(model: nn.Module) -> None:
    """Raise ``ValueError`` if a component returns tensors of other shapes than its contract says.

    model: a model on the meta device. A contract does not demand that a component runs there: one that does not is
    named in a warning."""
    training = model.training
    model.eval()
    with torch.device("meta"):
        for key, encoder in _encoders_in("model.encoder", model.encoder):
            _try(key, ENCODERS, encoder, partial(_check_encoder, encoder))
        _try("model.projector", PROJECTORS, model.projector, partial(_check_projector, model))
        if not isinstance(model.llm, HFCausalLM):  # transformers' models need numbers, so they do not run here
            _try("model.llm", LLMS, model.llm, partial(_check_llm, model.llm))
        for i, target in enumerate(model.targets):
            key, hidden_size = f"model.reconstruction[{i}]", model.llm.hidden_size
            _try(key, TARGETS, target, partial(_check_target, target, model))
            if not isinstance(target, CodeTarget):
                continue
            check_tokenizer = partial(_check_tokenizer, target, model.encoder)
            _try(f"{key}.tokenizer", VISUAL_TOKENIZERS, target.tokenizer, check_tokenizer)
            _try(f"{key}.head", HEADS, target.head, partial(_check_head, target, hidden_size))
            _try(f"{key}.loss", LOSSES, target.criterion, partial(_check_loss, target, hidden_size))
    model.train(training)


def _try(key: str, registry: FullRegistry, part: object, check: Callable[[], None]) -> None:
    """Run ``check`` on a component that is not the library's. key: the component's key in the config."""
    if type(part).__module__.startswith(LIBRARY):
        return
    try:
        check()
    except _Broken as error:
        raise ValueError(f"{key}: {registry.broken(part)}: {error}. The contract: {registry.contract}") from None
    except Exception as error:  # raised by the user's own code, which may need numbers; meta tensors have none
        message = "%s: %s is not tried before the run, since it does not run without numbers (%s: %s)"
        log_once(logging.WARNING, message, key, type(part).__name__, type(error).__name__, str(error)[:200])


def _expect(what: str, value: object, *shape: int) -> Tensor:
    """Return ``value`` if it is a tensor of this shape. `ANY` stands for any size."""
    expected = ", ".join("any" if size == ANY else str(size) for size in shape) + ("," if len(shape) == 1 else "")
    if not isinstance(value, Tensor):
        raise _Broken(f"{what} is {type(value).__name__}, expected a tensor ({expected})")
    fits = len(value.shape) == len(shape) and all(b in (ANY, a) for a, b in zip(value.shape, shape, strict=True))
    if not fits:
        raise _Broken(f"{what} has the shape {tuple(value.shape)}, expected ({expected})")
    return value


def _encoders_in(key: str, encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return an encoder and the encoders that it consists of, with their config keys."""
    inner = encoder.inner().items() if isinstance(encoder, CompositeEncoder) else ()
    parts = [(re.sub(r"\.(\d+)$", r"[\1]", f"{key}.{name}"), part) for name, part in inner if name != "tokenizer"]
    return [(key, encoder), *(found for place, part in parts for found in _encoders_in(place, part))]


def _check_encoder(encoder: nn.Module) -> None:
    _expect(
        "forward(pixels (1, 3, h, w))",
        encoder(blank_pixels(encoder.transform, 1)),
        1,
        encoder.num_tokens,
        encoder.width,
    )


def _check_projector(model: nn.Module) -> None:
    tokens = model.encoder.num_tokens
    visual_INH = model.projector(torch.zeros(1, tokens, model.encoder.width))
    _expect("forward(features_INE)", visual_INH, 1, tokens, model.llm.hidden_size)


def _check_llm(llm: nn.Module) -> None:
    embeds_BTH = _expect("embed(ids (1, 3))", llm.embed(torch.zeros(1, 3, dtype=torch.long)), 1, 3, llm.hidden_size)
    states = llm.hidden(embeds_BTH, {-1})
    if not isinstance(states, dict) or -1 not in states:
        raise _Broken(f"hidden(embeds, {{-1}}) is {type(states).__name__}, expected dict(tap -> hidden_BTH) with -1")
    _expect("hidden(embeds, {-1})[-1]", states[-1], 1, 3, llm.hidden_size)
    _expect("lm_head(hidden_PH)", llm.lm_head(states[-1][0]), 3, ANY)


def _check_target(target: Target, model: nn.Module) -> None:
    _check_target_on(model.layout.largest(), target, model)
    found = None if model.layout.fixed else _with_gaps(model.layout)
    if found is None:
        return
    try:
        _check_target_on(found, target, model)
    except RuntimeError as error:  # sizes that do not fit: it ran on an image in which each cell has a token
        raise _Broken(
            f"loss(seen, truth) does not run if some cells have no token, such as padding ({error}): read the truth "
            "only at token_P of places(seen), or use seen.there_IN"
        ) from None


def _with_gaps(layout: ImageLayout) -> Layout | None:
    """Return the layout of an image in which some cells have no token, or None."""
    found = (layout(size) for size in ((1000, 90), (90, 1000), (640, 480), (480, 640)))
    return next((own for own in found if 0 < own.num_visual < own.num_crops * layout.num_cells), None)


def _check_target_on(layout: Layout, target: Target, model: nn.Module) -> None:
    images = layout.num_crops
    pixels = {name: blank_pixels(view, images) for name, view in target.views().items()}
    features_INE = torch.zeros(images, model.encoder.num_tokens, model.encoder.width)
    truth = _reading("pixels", pixels, "views()", lambda: target.truth(pixels, features_INE))
    if not isinstance(truth, dict) or not all(isinstance(value, Tensor) for value in truth.values()):
        raise _Broken(f"truth(pixels, features_INE) is {type(truth).__name__}, expected dict(name -> tensor)")
    for name, spec in (target.truth_spec() or {}).items():
        if name not in truth:
            raise _Broken(f"truth() lacks {name!r}, which truth_spec() names")
        _expect(f"truth()[{name!r}]", truth[name], images, *spec.shape)
        if truth[name].dtype != spec.dtype and type(target).to_cache is Target.to_cache:
            raise _Broken(f"truth()[{name!r}] is {truth[name].dtype}, truth_spec() says {spec.dtype}")
    tokens = layout.num_tokens + 2
    hidden = {tap: torch.zeros(tokens, model.llm.hidden_size) for tap in target.taps}
    batch = full_batch(model, 1, tokens, layout=layout)
    seen = Seen(batch=batch, hidden=hidden, features_INE=features_INE, training=True)
    found = _reading("hidden states", hidden, "taps", lambda: target.loss(seen, truth))
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise _Broken(f"loss(seen, truth) is {type(found).__name__}, expected a sum and a dict of sums")
    _expect("the sum of loss(seen, truth)", found[0])
    if found[1].keys() != target.metrics.keys():
        raise _Broken(
            f"loss(seen, truth) counts {sorted(found[1])}, expected {sorted(target.metrics)}, as metrics lists"
        )
    for name, shape in target.metrics.items():
        _expect(f"{name!r} of loss(seen, truth)", found[1][name], *shape)
    shown = target.inspect(seen, truth)
    if not (shown is None or isinstance(shown, dict)):
        raise _Broken(f"inspect(seen, truth) is {type(shown).__name__}, expected None, or a tensor by name")
    for name, value in (shown or {}).items():
        _expect(f"{name!r} of inspect(seen, truth)", value, images, model.encoder.num_tokens)
    if is_mean(target, model, layout, truth):
        raise _Broken(
            "the first result of loss(seen, truth) is as large for two samples as for one, so it is a mean: return the "
            "sum over all positions (reduction='sum', or .sum()), which the library divides"
        )


def _reading(what: str, given: dict, by: str, call: Callable):
    """Return the result of ``call``. It may read only the entries of ``given``, which ``by`` names."""
    try:
        return call()
    except KeyError as error:
        if error.args and error.args[0] not in given and isinstance(error.args[0], str | int):
            raise _Broken(f"it reads {error.args[0]!r} of the {what}, and {by} names {list(given) or 'none'}") from None
        raise


def _check_tokenizer(target: CodeTarget, encoder: nn.Module) -> None:
    tokenizer, depth = target.tokenizer, len(target.tokenizer.codebook_sizes)
    vectors_PDC = tokenizer.embed(torch.zeros(ROWS, depth, dtype=torch.long))
    _expect("embed(codes_PD)", vectors_PDC, ROWS, depth, tokenizer.code_width)
    if target.shares_encoder:
        what, codes = "quantize(features_INE)", tokenizer.quantize(torch.zeros(1, encoder.num_tokens, encoder.width))
    else:
        what, codes = "encode(pixels (1, 3, h, w))", tokenizer.encode(blank_pixels(tokenizer.transform, 1))
    _expect(what, codes, 1, tokenizer.grid[0] * tokenizer.grid[1], depth)
    if codes.dtype not in INTEGERS:
        raise _Broken(f"{what} is {codes.dtype}, expected integers (torch.int64)")


def _check_head(target: CodeTarget, hidden_size: int) -> None:
    assert target.head is not None  # a CodeTarget always builds one, as it builds its criterion
    sizes, classifiers = target.tokenizer.codebook_sizes, target.head.classifiers
    if len(classifiers) != len(sizes):
        raise _Broken(f"it has {len(classifiers)} classifiers, expected {len(sizes)}, one for each code depth")
    states_PDW = _expect("forward(hidden_PH, vectors_PDC)", _states(target, hidden_size), ROWS, len(sizes), ANY)
    for d, (classifier, size) in enumerate(zip(classifiers, sizes, strict=True)):
        _expect(f"classifiers[{d}]", classifier(states_PDW[:, d]), ROWS, size)


def _check_loss(target: CodeTarget, hidden_size: int) -> None:
    assert target.head is not None and target.criterion is not None
    depth = len(target.tokenizer.codebook_sizes)
    codes_PD = torch.zeros(ROWS, depth, dtype=torch.long)
    made = target.criterion(_states(target, hidden_size), target.head.classifiers, codes_PD)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise _Broken(f"it gives {type(made).__name__}, expected two tensors")
    _expect("the loss, the first of two,", made[0])
    _expect("the count of right codes, the second of two,", made[1], depth)


def _states(target: CodeTarget, hidden_size: int) -> Tensor:
    tokenizer = target.tokenizer
    vectors_PDC = torch.zeros(ROWS, len(tokenizer.codebook_sizes), tokenizer.code_width)
    return target.run_head(torch.zeros(ROWS, hidden_size), vectors_PDC)
