"""Count the floating-point operations of a model, component by component, on the meta device.

fvcore counts multiply-accumulates (MACs). Every number here is FLOPs = 2 x MACs. Matrix products, convolutions and
attention are counted. Norms, activations and softmax are not. Attention counts all pairs of tokens, also if it is
causal.

Legend: ``T`` tokens in a row, ``N`` visual tokens of an image, ``E`` encoder width, ``H`` LLM width,
``C`` code width, ``D`` code depth, ``V`` codes in a codebook, ``S`` supervised text positions.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from asvr.base.compat import count_macs
from asvr.data.transforms import blank_pixels, flat_pixels
from asvr.models.attention import set_kernel
from asvr.models.batches import full_batch
from asvr.models.targets import CodeTarget, Seen, Target
from asvr.models.tokenizers.base import VisualTokenizer

LLM_BLOCKS = "LLM blocks"


@dataclass(frozen=True)
class Sample:
    """The training sample that is counted: one image, and text tokens that are all supervised."""

    text_tokens: int = 128


@dataclass(frozen=True)
class Part:
    """A part of the forward pass.

    name: what is counted. component: the component whose training decides the backward pass (see ``VLM.components``).
    flops: of one forward pass on one sample. last: FLOPs of the last product of each block with activation
    checkpointing; the backward pass does not compute it again, because nothing in the block needs its result. target:
    the target at whose supervised positions it is computed, if any. rows: whether it is one more pass of an LLM over
    rows with images.
    """

    name: str
    component: str
    flops: int
    last: int = 0
    target: str = ""
    rows: bool = False


class _Call(nn.Module):
    """A function that uses ``modules``, as a module, because fvcore traces modules."""

    def __init__(self, function: Callable, *modules: nn.Module):
        super().__init__()
        self.function = function
        self.modules_used = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class _OfPixels(nn.Module):
    """A function of pixels as a function of the tensors in them. It is a module, so that copies of it work."""

    def __init__(self, function: Callable, rebuilt: Callable):
        super().__init__()
        self.function, self.rebuilt = function, rebuilt

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(self.rebuilt(tensors))


def flops_of(function: Callable, modules: list[nn.Module], *shapes: tuple[int, ...], dtype=torch.float32) -> int:
    """FLOPs of ``function`` on meta tensors of these shapes. modules: the modules whose weights it uses."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    call = _Call(function, *modules)
    macs = count_macs(call, shapes, dtype)
    for module, mode in zip(modules, training, strict=True):
        module.train(mode)
    return 2 * macs


def flops_of_pixels(function: Callable, module: nn.Module, transform=None) -> int:
    """FLOPs of ``function`` on the pixels of one image. It uses ``module``. The pixels may be a tensor or a dict."""
    pixels = blank_pixels(transform or module.transform, 1)
    tensors, rebuilt = flat_pixels(pixels)
    return flops_of(_OfPixels(function, rebuilt), [module], *(tuple(tensor.shape) for tensor in tensors))


def _with_last(count: Callable[[], int], model: nn.Module) -> tuple[int, int]:
    """The result of ``count``, which runs ``model``, and its `Part.last`."""
    last: dict[nn.Module, int] = {}

    def note(block: nn.Module) -> Callable:
        def hook(module: nn.Module, _, out: Tensor) -> None:
            # The outputs of experts are multiplied with the router's weights, whose gradients need these outputs.
            skipped = isinstance(module, nn.Linear)
            last[block] = 2 * int(out.numel()) * module.in_features if skipped else 0

        return hook

    handles = [
        module.register_forward_hook(note(block))
        for block in model.modules()
        if isinstance(block, GradientCheckpointingLayer)
        for module in block.modules()
        if isinstance(module, nn.Linear) or is_experts(module)
    ]
    flops = count()
    for handle in handles:
        handle.remove()
    return flops, sum(last.values())


def is_experts(module: nn.Module) -> bool:
    """Whether a module has weights with one matrix for each expert of an LLM."""
    own = [] if isinstance(module, nn.modules.conv._ConvNd) else module.parameters(recurse=False)
    return any(parameter.ndim == 3 for parameter in own)


def forward_parts(model: nn.Module, sample: Sample) -> list[Part]:
    """The parts of a model's forward pass on one sample, counted on the meta device."""
    encoder, llm, dtype = model.encoder, model.llm, next(model.llm.parameters()).dtype
    image = model.layout.largest()
    tokens = image.num_tokens + sample.text_tokens
    row = (1, tokens, llm.hidden_size)
    blocks, last = _with_last(lambda: flops_of(lambda x: llm.hidden(x)[-1], [llm], row, dtype=dtype), llm)
    tower, tower_last = _with_last(lambda: flops_of_pixels(encoder, encoder), encoder)
    projector = flops_of(model.projector, [model.projector], (1, encoder.num_tokens, encoder.width))
    parts = [
        Part("encoder", "encoder", image.num_crops * tower, image.num_crops * tower_last),
        Part("projector", "projector", image.num_crops * projector),
        Part(LLM_BLOCKS, "llm", blocks, last),
        _classifiers("LM head", "llm", [model.text_classifier()], (sample.text_tokens, llm.hidden_size)),
    ]
    for target in model.targets:
        own = _code_parts(target, llm.hidden_size) if isinstance(target, CodeTarget) else _parts_of(target, model)
        parts += [replace(part, flops=image.num_crops * part.flops) for part in own]
        if target.own_pass:
            parts.append(Part(f"masked pass {target.name}", "llm", blocks, last, rows=True))
        if target.copies_llm:
            parts.append(Part(f"teacher {target.name}", "teachers", blocks, rows=True))
    return parts


def text_parts(model: nn.Module, sample: Sample) -> list[Part]:
    """The parts of a model's forward pass on a sample without an image: LLM blocks and LM head, as `forward_parts`."""
    llm, dtype = model.llm, next(model.llm.parameters()).dtype
    row = (1, sample.text_tokens, llm.hidden_size)
    blocks, last = _with_last(lambda: flops_of(lambda x: llm.hidden(x)[-1], [llm], row, dtype=dtype), llm)
    head = _classifiers("LM head", "llm", [model.text_classifier()], (sample.text_tokens, llm.hidden_size))
    return [Part(LLM_BLOCKS, "llm", blocks, last), head]


def _code_parts(target: CodeTarget, hidden_size: int) -> list[Part]:
    tokenizer, head, positions = target.tokenizer, target.head, target.positions.per_image
    depth, code_width = tokenizer.depth, tokenizer.code_width
    network = 0 if target.shares_encoder else network_flops(tokenizer)
    quantizer = getattr(tokenizer, "quantizer", None)
    if quantizer is not None:
        lookup = flops_of(quantizer.encode, [quantizer], (tokenizer.num_tokens, code_width))
    else:  # by formula, because a VQGAN's code search is a part of its network's last step
        lookup = 2 * tokenizer.num_tokens * sum(tokenizer.codebook_sizes) * code_width
    shapes = (positions, hidden_size), (positions, depth, code_width)
    body = flops_of(target.run_head, [head], *shapes)
    with torch.no_grad():
        rows = positions, target.run_head(*(torch.zeros(shape, device="meta") for shape in shapes)).shape[-1]
    classifiers = f"classifiers {target.name} (depth {depth})"
    return [
        Part(f"tokenizer {target.name}: network", f"tokenizer.{target.name}", network),
        Part(f"tokenizer {target.name}: code search", f"tokenizer.{target.name}", lookup),
        Part(f"head {target.name}", "heads", body, target=target.name),
        replace(_classifiers(classifiers, "heads", list(target.classifiers), rows), target=target.name),
    ]


def _parts_of(target: Target, model: nn.Module) -> list[Part]:
    """The parts of a target without codes, for one crop: its truth and its loss. Both are run once on one image.

    A teacher that is a copy of the LLM is counted elsewhere, as a pass of the LLM.
    """
    image = model.layout.largest()
    tokens, crops = image.num_tokens + 2, image.num_crops
    batch, dtype = full_batch(model, 1, tokens).to("meta"), next(model.llm.parameters()).dtype
    with torch.device("meta"):
        features_INE = torch.zeros(crops, model.encoder.num_tokens, model.encoder.width)
        pixels = {name: blank_pixels(view, crops) for name, view in model.views().items()}
        hidden = {tap: torch.zeros(tokens, model.llm.hidden_size) for tap in target.taps}
    with torch.no_grad(), FlopCounterMode(display=False) as of_truth:
        truth = target.truth(pixels, features_INE)
    masked, expected = target.mask(batch, training=False), 1.0
    if masked is not None:  # in training some images may not be masked: take the expected number
        expected = target.count([batch], training=True) / target.count([batch], training=False)
    seen = Seen(
        batch=batch,
        hidden=hidden,
        features_INE=features_INE,
        training=True,
        masked=masked,
        embeds_BTH=torch.zeros(1, tokens, model.llm.hidden_size, dtype=dtype, device="meta"),
    )
    if target.copies_llm:
        set_kernel(target.teacher, "sdpa")  # transformers' own mask cannot be made on the meta device
    with torch.no_grad():
        truth = truth | target.teach(seen)
    with torch.no_grad(), FlopCounterMode(display=False) as of_loss:
        target.loss(seen, truth)
    component = "teachers" if target.truth_spec() is None else f"tokenizer.{target.name}"
    return [
        Part(f"truth {target.name}", component, of_truth.get_total_flops() // crops),
        Part(f"head {target.name}", "heads", round(expected * of_loss.get_total_flops() / crops), target=target.name),
    ]


def counted_positions(target: Target, model: nn.Module) -> float:
    """The result of `Target.count` for the sample that `forward_parts` counts."""
    if isinstance(target, CodeTarget):
        return model.layout.largest().num_crops * target.positions.per_image
    batch = full_batch(model, 1, model.layout.largest().num_tokens + 2)
    return target.count([batch], training=True)


def network_flops(tokenizer: VisualTokenizer) -> int:
    """FLOPs of a tokenizer's network for one image, without the search in its codebooks."""
    encoder = getattr(tokenizer, "encoder", None)  # a semantic tokenizer's
    network = encoder if encoder is not None else tokenizer.latents
    return flops_of_pixels(network, tokenizer if encoder is None else encoder, tokenizer.transform)


def _classifiers(name: str, component: str, layers: list[nn.Module], rows: tuple[int, int]) -> Part:
    """A part for linear layers. rows: number and width of the input rows."""
    flops = sum(flops_of(layer, [layer], rows, dtype=next(layer.parameters()).dtype) for layer in layers)
    return Part(name, component, flops)


def recomputed_parts(model: Config) -> set[str]:
    """Names of the parts that the backward pass computes again, by a model's config. An encoder that is made of others
    is included if all of them are."""

    def full(component: Config) -> bool:
        if not isinstance(component, dict):
            return False
        others = component.get("encoders") or [component.get("encoder")]
        return component.get("activation_checkpointing") == "full" or all(map(full, others))

    found = {f"head {target.name}" for target in model.reconstruction if full(target.get("head"))}
    return found | {name for name, part in ((LLM_BLOCKS, model.llm), ("encoder", model.encoder)) if full(part)}


def training_factor(
    part: Part, train: Mapping[str, float] | Collection[str], *, recomputed: set[str], cached: bool
) -> float:
    """The cost of a part in one training step, in forward passes.

    - 0: its result is read from a cache (``cached``).
    - 1: no gradient is needed.
    - 2: a gradient only passes through, to a component that is trained.
    - 3: its weights get a gradient too.
    - Between 2 and 3: a share of its weights is trained.
    - One more, without `Part.last`: the backward pass computes the forward pass again (``recomputed``, see
      `recomputed_parts`).

    train: the components that are trained, with the shares of their weights (`trained_shares`). It is an upper bound,
    because weights before the first trained one need no gradient.
    """
    if cached and part.component not in train and part.component.startswith(("encoder", "tokenizer.")):
        return 0
    upstream = {
        "projector": ("encoder",),
        "llm": ("encoder", "projector"),
        "heads": ("encoder", "projector", "llm"),
    }
    if part.component in train:
        factor = 2 + (train[part.component] if isinstance(train, Mapping) else 1)
    elif any(name in train for name in upstream.get(part.component, ())):
        factor = 2
    else:
        return 1
    again = (LLM_BLOCKS if part.rows else part.name) in recomputed
    return factor + (1 - part.last / part.flops if again else 0)
