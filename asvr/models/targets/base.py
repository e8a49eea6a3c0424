"""The contract of a reconstruction target: what the LLM's hidden states at an image are trained to tell.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images of the encoder (each crop of an image that is cut into several
is one), ``N`` visual tokens of one, ``P`` visual positions that carry the loss, ``H`` LLM width, ``E`` encoder width.
"""

from collections.abc import Mapping
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
from asvr.models.targets.weights import ramp_of
from asvr.models.visual_attention import AttentionRule


@dataclass(frozen=True)
class TensorSpec:
    """Of one image. shape: without the images' dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a target may look at, of one micro-batch.

    hidden: tap -> hidden states of all positions, flat (B*T, H); the taps that the target names. features_INE: of the
    encoder, None where the batch has no image. training: whether this is a training step. masked: what the target had
    masked in the pass that it reads. embeds_BTH, rule: what the LLM gets where nothing is masked, and who sees whom
    then (None: all attention is causal).
    """

    batch: Batch
    hidden: Mapping[int, Tensor]
    features_INE: Tensor | None
    training: bool
    masked: Masked | None = None
    embeds_BTH: Tensor | None = None
    rule: AttentionRule | None = None

    def images(self, tap: int = -1) -> Tensor:
        """Hidden states (I, N, H) at the positions of the images' own tokens; zeros at a cell without one, see
        `there_IN`."""
        return self.by_image(self.hidden[tap][self.batch.visual_position_V])

    def by_image(self, values_VX: Tensor) -> Tensor:
        """What the visual tokens have, (V, X), as (I, N, X); zeros at a cell without a token."""
        batch = self.batch
        if batch.cells is not None:
            all_cells = values_VX.new_zeros(batch.num_images * batch.num_cells, values_VX.shape[-1])
            values_VX = all_cells.index_copy(0, batch.cells.index_V, values_VX)
        return values_VX.unflatten(0, (batch.num_images, batch.num_cells))

    def means(self, tap: int = -1) -> Tensor:
        """The mean of each image's hidden states, (I, H) float32; zeros for one without a token."""
        states_INH, there_IN = self.images(tap).float(), self.there_IN
        if there_IN is None:
            return states_INH.mean(1)
        return states_INH.sum(1) / there_IN.sum(1, keepdim=True).clamp(min=1)

    @property
    def has_tokens_I(self) -> Tensor:
        """Which images have a token at all, bool: a tile that is padding through and through has none. On the CPU they
        are counted by `Batch.num_images_with_tokens`."""
        there_IN = self.there_IN
        if there_IN is not None:
            return there_IN.any(1)
        positions_V = self.batch.visual_position_V
        return torch.ones(self.batch.num_images, dtype=torch.bool, device=positions_V.device)

    @property
    def there_IN(self) -> Tensor | None:
        """Which cells have a token, bool; None: all of them. Of a tile that was padded some have none, nor have those
        that an image in its own resolution does not fill."""
        batch = self.batch
        if batch.cells is None:
            return None
        index_V = batch.cells.index_V
        there = torch.zeros(batch.num_images * batch.num_cells, dtype=torch.bool, device=index_V.device)
        return there.index_fill(0, index_V, True).view(batch.num_images, batch.num_cells)


class Target:
    """What is reconstructed of the images, from which hidden states, and by which loss.

    A target of one's own is a class in the registry ``TARGETS``, with `truth` and `loss`. It is no module: its weights
    are in three slots, by which checkpoints, ``train``, DDP and FSDP2 know them.

    head: what is trained with ``heads`` (several layers go into a ``nn.ModuleList`` or the like). teacher: what makes
        the truth and gets no gradient; None where there is none. criterion: a loss with weights or buffers, or None.
    keeps_teacher: True where the teacher changes in training (an EMA) or its weights are in no file: checkpoints hold
        it then. False: its weights are in files of their own, which checkpoints name by a fingerprint.
    copies_llm: True where the constructor copies the LLM, whose weights must be there then.
    own_pass: True where it masks visual tokens in a pass of its own (`mask`), which costs one more of the LLM.
    shares_mask: True where the text reads the images that it masks, in training. rules: True where attention in the
        pass that it reads is not causal.
    metrics: name -> shape of what `loss` counts beside the loss; ``()`` for one number.
    text_rows: a layer whose classes stand behind the LM head's in the softmax of the text loss, or None.

    name: of the loss in logs. weight: factor of the loss, or a `Ramp` as a dict; the attribute is the present one.
    taps: the hidden states that it reads: -1 after the LLM's final norm, 0 what its first block gets, ``k`` the output
    of its k-th block. shift: 1 = the hidden state before a visual token predicts it, 0 = the one at its own position.
    supervise: which visual tokens carry the loss, see `Positions`. key: of the entry in the config, for messages.
    encoder, llm, load_weights and key are injected.
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
    metrics: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  read alone

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
                    f"{key}.tap={tap}: no final norm is found in this LLM, which has no other last state; use -1"
                )
        self.ramp = ramp_of(weight, f"{key}.weight")
        self.weight = weight if self.ramp is None else self.ramp.begin
        self.name, self.taps, self.shift, self.key = name, tuple(taps), shift, key
        self.grid, self.num_tokens = tuple(encoder.grid), encoder.num_tokens
        self.positions = Positions(supervise, self.num_tokens, key=f"{key}.supervise")

    @property
    def counts(self) -> bool:
        """Whether its loss has a weight at any time."""
        return bool(self.weight if self.ramp is None else self.ramp.begin or self.ramp.end)

    def set_progress(self, done: float) -> None:
        """Before each step of a stage: from 0 in the first to 1 in the last."""
        if self.ramp is not None:
            self.weight = self.ramp.at(done)

    # What a target gives -----------------------------------------------------------------------------------

    def views(self) -> dict[str, ImageTransform]:
        """The images that `truth` needs beside the encoder's features: view name -> transform. Their pixels come by
        this name, which is the target's, or begins with it: ``<name>.<what>``. Equal transforms, such as the encoder's,
        are computed once."""
        return {}

    def truth_spec(self) -> dict[str, TensorSpec] | None:
        """What `truth` gives of an image, where ``data.cache=True`` may keep it; None: it cannot be kept, since it
        changes in training, or is drawn."""
        return None

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        """What is to be reconstructed: name -> (I, ...). pixels: by view, those of `views`. features_INE: of the
        encoder. It runs without gradients, in float32. What it gives comes back in `loss`, computed or cached."""
        raise NotImplementedError(f"{type(self).__name__} must say what is to be reconstructed: truth()")

    def mask(self, batch: Batch, *, training: bool) -> Masked | None:
        """Which visual tokens the LLM gets masked for this target, drawn anew in each training step; None: it reads
        what the text reads. Masks are drawn on the CPU: nothing may wait for the device."""
        return None

    def reads_alone(self, *, training: bool) -> bool:
        """Whether it has a pass of its own for what it masks. The same for all micro-batches of a step."""
        return self.own_pass

    def teach(self, seen: Seen) -> dict[str, Tensor]:
        """More of the truth, of what the LLM gets: that of a teacher which is a copy of it. It runs in the precision of
        the step, and must make no gradients."""
        return {}

    def to_cache(self, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """The truth of some images on the CPU, as the cache keeps it. Raises ``ValueError`` where it is not as
        `truth_spec` says."""
        specs, found = self.truth_spec(), {}
        assert specs is not None  # a truth without a spec is never cached
        if truth.keys() != specs.keys():
            raise ValueError(f"the truth of target {self.name!r} holds {sorted(truth)}, truth_spec() {sorted(specs)}")
        for name, spec in specs.items():
            value = truth[name].cpu()
            if (value.dtype, tuple(value.shape[1:])) != (spec.dtype, tuple(spec.shape)):
                raise ValueError(
                    f"{name!r} of target {self.name!r} is {value.dtype} {tuple(value.shape[1:])} an image, expected "
                    f"{spec.dtype} {tuple(spec.shape)}, as truth_spec() says"
                )
            found[name] = value
        return found

    def cache_key(self) -> str:
        """All that `truth` depends on besides the entry in the config and the encoder's features: two targets of one
        key give one truth. The source of the class is a part of it; of functions that it calls it is not."""
        teacher = "" if self.teacher is None else fingerprint_of(self.teacher)
        return f"{source_of_class(type(self))} {teacher} {self.views()} {self.truth_spec()}"

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over what `count` counts, and as such sums the `metrics` by name. Nothing may wait for the
        device."""
        raise NotImplementedError(f"{type(self).__name__} must compare hidden states with the truth: loss()")

    def count(self, window: list[Batch], *, training: bool) -> float:
        """By what the sum of `loss` over these micro-batches is divided: by default the number of visual tokens that
        carry it, in training the expected one where some are drawn. From counts on the CPU alone."""
        return self.positions.count(window, self.shift, training=training)

    def learns_from(self, batch: Batch) -> bool:
        """Whether a micro-batch has anything for this target. From counts on the CPU alone."""
        return self.count([batch], training=False) > 0

    def start(self, model) -> None:
        """Where a run begins with a model folder that lacks this target: its weights are as built then, the others the
        folder's. A teacher that follows the training begins here. Raises ``ValueError`` where nothing says how."""
        if self.keeps_teacher:
            raise ValueError(
                f"target {self.name!r} is not in the model that the run begins with, and {type(self).__name__}.start() "
                "does not say how its teacher begins: write it, or begin with a model that has the target"
            )

    def after_step(self, model, skipped: Tensor | None) -> None:
        """After each optimisation step: a place for an EMA, see `asvr.models.targets.ema`. skipped: () bool on the
        device, whether the step was left out since it was not finite. Runs without gradients."""

    def inspect(self, seen: Seen, truth: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Maps to look at: name -> (I, N) numbers, NaN at a token without one. None: there is nothing to show."""
        return None

    @property
    def decodes(self) -> bool:
        """Whether pixels can be made of what it predicts."""
        return False

    def describe(self) -> str:
        """A few words for summaries."""
        return type(self).__name__

    def portable(self, config: dict) -> dict:
        """``config`` of this target without the files that it names, see `Component.portable`."""
        own = {key: value for key, value in config.items() if key != "fit"}
        for part in ("teacher", "head"):
            if isinstance(own.get(part), dict) and isinstance(getattr(self, part), nn.Module):
                own[part] = portable_of(getattr(self, part), own[part])
        return own

    def check_slots(self) -> None:
        """Raise ``ValueError`` for a teacher that would move and not be kept."""
        moves = type(self).after_step is not Target.after_step
        if moves and self.teacher is not None and not self.keeps_teacher:
            raise ValueError(
                f"{self.key}: {type(self).__name__} has a teacher and an after_step(): set keeps_teacher = True, so "
                "that checkpoints hold it"
            )

    def check_layout(self, layout: ImageLayout) -> None:
        """Raise ``ValueError`` where it cannot learn from images of which not all cells have a token, or whose number
        of tokens depends on their size: ``layout.fixed`` is None then."""

    # For use in `loss` -------------------------------------------------------------------------------------

    def places(self, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """Which hidden position predicts which visual token: ``source_P``, flat into (B*T), and ``token_P``, flat into
        (I*N), None where that is all of them."""
        return self.positions.places(seen.batch, self.shift, training=seen.training)
