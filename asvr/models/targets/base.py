"""The contract of a reconstruction target: what the LLM's hidden states of an image are trained to predict.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images (if an image is cut into crops, each crop counts as one), ``N``
visual tokens of an image, ``P`` visual positions that carry the loss, ``H`` LLM width, ``E`` encoder width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asvr.base.text import source_of_class
from asvr.data.batch import Batch
from asvr.data.layouts import ImageLayout
from asvr.data.transforms import ImageTransform, Pixels
from asvr.models.component import fingerprint_of, portable_of
from asvr.models.masking import Masked
from asvr.models.targets.positions import Positions
from asvr.models.targets.seen import Seen
from asvr.models.targets.weights import ramp_of


@dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of a tensor of one image. shape: without the dimension of the images."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Target:
    """A reconstruction target: what to predict about the images, from which hidden states, and with which loss.

    Your own target is a subclass in the registry ``TARGETS`` with the methods `truth` and `loss`. It is not a
    ``nn.Module``. Its weights are in three attributes, where checkpoints, ``train``, DDP and FSDP2 find them:

    head: a module that is trained with ``heads``. Several layers go into one ``nn.ModuleList`` or the like.
    teacher: a module that makes the truth and gets no gradient, or None.
    criterion: a loss with weights or buffers, or None.

    More attributes of the class:

    keeps_teacher: True if the teacher changes in training (a moving average) or its weights are in no file. Then
        checkpoints hold it. False: its weights are in files, and checkpoints hold only their fingerprint.
    copies_llm: True if the constructor copies the LLM. Then the LLM's weights are loaded before.
    own_pass: True if the target masks visual tokens in an LLM pass of its own (`mask`), which costs time.
    shares_mask: True if in training the text sees the same masked images.
    rules: True if attention in the pass that it reads is not causal.
    metrics: name -> shape of each metric that `loss` returns; ``()`` for one number.
    text_rows: a layer whose classes are added after the LM head's to the softmax of the text loss, or None.

    Arguments; the library gives encoder, llm, load_weights and key:

    name: name of the loss in logs. weight: factor of the loss, or a dict with the fields of a `Ramp`.
    taps: the hidden states that the target reads. -1: after the LLM's final norm. 0: the input of the first block.
        ``k``: the output of the k-th block.
    shift: 1: the hidden state before a visual token predicts it. 0: the hidden state at its own position does.
    supervise: which visual tokens carry the loss. None: all. A number: so many of each image, drawn in each training
        step. Or a dict, see `Positions`. key: the config key, for messages.

    The attribute ``weight`` is the current factor of the loss.
    """

    head: nn.Module | None = None
    teacher: nn.Module | None = None
    criterion: nn.Module | None = None
    text_rows: nn.Module | None = None
    keeps_teacher: bool = False
    copies_llm: bool = False
    own_pass: bool = False
    shares_mask: bool = False
    rules: bool = False
    metrics: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  it is only read

    def __init__(
        self,
        *,
        name: str,
        encoder,
        llm,
        weight: float | dict = 1.0,
        taps: tuple[int, ...] | list[int] = (-1,),
        shift: int = 0,
        supervise: int | dict | None = None,
        load_weights: bool = True,
        key: str = "target",
    ):
        if shift not in (0, 1):
            raise ValueError(f"{key}.shift={shift!r}: expected 1 (the paper's equation 2) or 0 (the released code)")
        for tap in taps:
            if not -1 <= tap <= llm.num_layers:
                raise ValueError(
                    f"{key}.tap={tap}: expected -1 (after the final norm) or a layer in 0..{llm.num_layers}"
                )
            if tap == llm.num_layers and getattr(llm, "final_norm", tap) is None:
                raise ValueError(
                    f"{key}.tap={tap}: no final norm is found in this LLM, so its last state is tap=-1; use -1"
                )
        self.ramp = ramp_of(weight, f"{key}.weight")
        self.weight = weight if self.ramp is None else self.ramp.begin
        self.name, self.taps, self.shift, self.key = name, tuple(taps), shift, key
        self.grid, self.num_tokens = tuple(encoder.grid), encoder.num_tokens
        self.positions = Positions(supervise, self.num_tokens, key=f"{key}.supervise")

    @property
    def counts(self) -> bool:
        """Whether the weight of the loss is above 0 at any time."""
        return bool(self.weight if self.ramp is None else self.ramp.begin or self.ramp.end)

    def set_progress(self, done: float) -> None:
        """Set how much of a stage is done, before each step: 0 in the first, 1 in the last."""
        if self.ramp is not None:
            self.weight = self.ramp.at(done)

    # What a target gives -----------------------------------------------------------------------------------

    def views(self) -> dict[str, ImageTransform]:
        """The pixels that `truth` needs besides the encoder's features: view name -> transform.

        The name of a view is the target's name, or begins with it: ``<name>.<what>``. If two views have equal
        transforms, or one equals the encoder's, the pixels are computed once."""
        return {}

    def truth_spec(self) -> dict[str, TensorSpec] | None:
        """Return the tensors of `truth` for one image, if ``data.cache=True`` may cache them.

        None: they cannot be cached, because they change in training or are random."""
        return None

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        """Return what the target has to reconstruct: name -> (I, ...). `loss` gets it, computed or cached.

        pixels: the pixels of each view in `views`. features_INE: the encoder's features. It runs without gradients, in
        float32."""
        raise NotImplementedError(f"{type(self).__name__} needs a method truth() that returns what to reconstruct")

    def mask(self, batch: Batch, *, training: bool) -> Masked | None:
        """Choose the visual tokens that are masked for this target. None: no token is masked.

        Masks are drawn anew in each training step, on the CPU, so that nothing waits for the device."""
        return None

    def reads_alone(self, *, training: bool) -> bool:
        """Whether the LLM runs once more for this target's masks. It is the same for all micro-batches of a step."""
        return self.own_pass

    def teach(self, seen: Seen) -> dict[str, Tensor]:
        """Return more of the truth, computed from the LLM's input. A teacher that is a copy of the LLM needs this.

        It runs in the precision of the step, and must not compute gradients."""
        return {}

    def to_cache(self, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the truth of some images on the CPU, as the cache keeps it.

        Raises ``ValueError`` if it does not match `truth_spec`."""
        specs, found = self.truth_spec(), {}
        assert specs is not None  # a truth without a spec is never cached
        if truth.keys() != specs.keys():
            raise ValueError(
                f"target {self.name!r}: truth() returns {sorted(truth)}, but truth_spec() names {sorted(specs)}"
            )
        for name, spec in specs.items():
            value = truth[name].cpu()
            if (value.dtype, tuple(value.shape[1:])) != (spec.dtype, tuple(spec.shape)):
                raise ValueError(
                    f"target {self.name!r}: truth() returns {name!r} as {value.dtype} {tuple(value.shape[1:])} for an "
                    f"image, but truth_spec() says {spec.dtype} {tuple(spec.shape)}"
                )
            found[name] = value
        return found

    def cache_key(self) -> str:
        """Return a text that stands for all that `truth` depends on, besides the config and the encoder's features.

        Two targets with the same key have the same truth. The source code of the class is a part of the key. The source
        code of functions that it calls is not."""
        teacher = "" if self.teacher is None else fingerprint_of(self.teacher)
        return f"{source_of_class(type(self))} {teacher} {self.views()} {self.truth_spec()}"

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the `metrics` by name, all summed over what `count` counts.

        Nothing may wait for the device."""
        raise NotImplementedError(f"{type(self).__name__} needs a method loss() that compares hidden states and truth")

    def count(self, window: list[Batch], *, training: bool) -> float:
        """Return the number by which the sum of `loss` over these micro-batches is divided.

        By default it is the number of visual tokens that carry the loss. If tokens are drawn in training, it is the
        expected number. It may use only counts on the CPU."""
        return self.positions.count(window, self.shift, training=training)

    def learns_from(self, batch: Batch) -> bool:
        """Whether this target has a loss on a micro-batch. It may use only counts on the CPU."""
        return self.count([batch], training=False) > 0

    def start(self, model) -> None:
        """Initialise the teacher when a run starts from a model folder that lacks this target.

        The model has the folder's weights then, and this target has its new ones. A teacher that changes in training
        is set here. Raises ``ValueError`` if a subclass has such a teacher and no `start`."""
        if self.keeps_teacher:
            raise ValueError(
                f"target {self.name!r} is not in the model that the run begins with, and {type(self).__name__} has no "
                "start() that initialises its teacher: write one, or begin with a model that has the target"
            )

    def after_step(self, model, skipped: Tensor | None) -> None:
        """Do what is needed after each optimisation step, such as a moving average (`asvr.models.targets.ema`).

        skipped: () bool on the device, True if the step was skipped because a number was not finite. It runs without
        gradients."""

    def inspect(self, seen: Seen, truth: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return maps to look at: name -> (I, N) numbers, NaN where a token has none. None: there are no maps."""
        return None

    @property
    def decodes(self) -> bool:
        """Whether its predictions can be decoded into pixels."""
        return False

    def describe(self) -> str:
        """Describe the target in a few words, for summaries."""
        return type(self).__name__

    def portable(self, config: dict) -> dict:
        """Return the ``config`` of this target without names of files, see `Component.portable`."""
        own = {key: value for key, value in config.items() if key != "fit"}
        for part in ("teacher", "head"):
            if isinstance(own.get(part), dict) and isinstance(getattr(self, part), nn.Module):
                own[part] = portable_of(getattr(self, part), own[part])
        return own

    def check_slots(self) -> None:
        """Raise ``ValueError`` if the teacher changes in training, but checkpoints would not hold it."""
        moves = type(self).after_step is not Target.after_step
        if moves and self.teacher is not None and not self.keeps_teacher:
            raise ValueError(
                f"{self.key}: {type(self).__name__} has a teacher and an after_step(): set keeps_teacher = True, so "
                "that checkpoints hold it"
            )

    def check_layout(self, layout: ImageLayout) -> None:
        """Raise ``ValueError`` if the target cannot be used with this layout.

        If ``layout.fixed`` is None, some cells may have no token, or the number of tokens depends on the image size."""

    # For use in `loss` -------------------------------------------------------------------------------------

    def places(self, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """Return which hidden state predicts which visual token, as flat indices.

        ``source_P``: the hidden state's index in (B*T). ``token_P``: the visual token's index in (I*N), or None if the
        rows are all tokens in order."""
        return self.positions.places(seen.batch, self.shift, training=seen.training)
