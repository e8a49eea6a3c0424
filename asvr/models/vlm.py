"""The model on one page: a vision-language model that also reconstructs its input images.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images in the batch (if an image is cut into crops, each crop counts as
one), ``N`` visual tokens of an image, ``V`` visual tokens in all rows, ``H`` LLM width, ``E`` encoder width, ``D`` code
depth, ``C`` code width, ``S`` supervised text positions, ``P`` supervised visual positions, ``M`` cells of the
tokenizer's grid.
"""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.base.ranges import named_range
from asvr.data.batch import IMAGE_TOKEN, Batch
from asvr.data.layouts import build_layout
from asvr.data.transforms import Pixels
from asvr.models.attention import set_kernel
from asvr.models.checkpointing import Recomputation
from asvr.models.component import portable_of
from asvr.models.losses import JoinedClassifier, linear_cross_entropy
from asvr.models.masking import Masked
from asvr.models.separators import Separators
from asvr.models.targets import Seen, Target, build_target, check_together
from asvr.models.trainable import keep_statistics, train_only
from asvr.models.transforms import after_step
from asvr.models.tree import check_tree, is_trained
from asvr.models.visual_attention import MODES, AttentionRule, rule_of
from asvr.models.zero_grads import heads_of, idle_pass, zero_grad_path, zero_of
from asvr.registry import ENCODERS, LLMS, MODELS, PROJECTORS, TARGETS


@MODELS.register_module()
class VLM(nn.Module):
    """An encoder, a projector and an LLM, with a list of reconstruction targets.

    encoder, projector, llm: configs of the components. The widths between them are derived.
    layout: which visual tokens an image gets, see `asvr.data.layouts`. None: all visual tokens of the encoder.
    reconstruction: configs of the targets, ``dict(name, type, ...)``, see `asvr.models.targets`. The default ``type``
        is `CodeTarget`. With ``[]`` the model is LLaVA. With one target of semantic codes it is ASVR. With pixel codes
        it is the paper's appearance ablation.
    visual_attention: ``causal``, or ``bidirectional``: the visual tokens of an image see each other in the LLM.
    vocab_size: `TextTokenizer.num_ids`. It may be None if the LLM's configuration has the size.
    load_weights: False builds the architecture without weights. Under ``torch.device("meta")`` it takes no memory.
    defer_llm: leave the LLM's weights in their files until they are needed, see `HFCausalLM.materialise`. An LLM that
        cannot do so loads them at once.
    """

    def __init__(
        self,
        *,
        encoder: dict,
        projector: dict,
        llm: dict,
        reconstruction: list[dict],
        layout: dict | None = None,
        visual_attention: str = "causal",
        vocab_size: int | None = None,
        load_weights: bool = True,
        defer_llm: bool = False,
    ):
        super().__init__()
        self.encoder = ENCODERS.build(encoder, default_args=dict(load_weights=load_weights))
        given = dict(vocab_size=vocab_size, load_weights=load_weights)
        copied = any(getattr(TARGETS.get(entry.get("type", "CodeTarget")), "copies_llm", 0) for entry in reconstruction)
        if defer_llm and not copied and "defer" in inspect.signature(LLMS.get(llm["type"])).parameters:
            given["defer"] = True
        self.llm = LLMS.build(llm, default_args=given)
        widths = dict(in_width=self.encoder.width, out_width=self.llm.hidden_size)
        self.projector = PROJECTORS.build(projector, default_args=widths)
        self.layout = build_layout(dict(layout=layout), self.encoder)
        given = dict(encoder=self.encoder, llm=self.llm, model_projector=self.projector, load_weights=load_weights)
        self.targets: list[Target] = [
            build_target(entry, key=f"model.reconstruction[{i}]", **given) for i, entry in enumerate(reconstruction)
        ]
        for target in self.targets:
            target.check_slots()
            target.check_layout(self.layout)
        if visual_attention not in MODES:
            raise ValueError(f"model.visual_attention={visual_attention!r}: expected one of {', '.join(MODES)}")
        self.visual_attention = visual_attention
        check_together(self.targets)
        self.heads = _modules({target.name: target.head for target in self.targets})
        self.tokenizers = _modules({t.name: t.teacher for t in self.targets if not t.keeps_teacher})
        self.teachers = _modules({t.name: t.teacher for t in self.targets if t.keeps_teacher})
        self.losses = _modules({target.name: target.criterion for target in self.targets})
        # Last, because it draws random numbers: the other weights are the same with and without it.
        self.separators = Separators(self.layout.num_separators, self.llm.hidden_size)
        self.metrics = {f"{metric}_{target.name}": target.name for target in self.targets for metric in target.metrics}
        self.compute_device: torch.device | None = None
        check_tree(self, [*self.targets, *(target.criterion for target in self.targets)])
        self.held: set[str] = set()  # names of parameters that `train_only` froze
        if not self.all_causal:  # our sdpa, until `use_attention` chooses: transformers' kernels know no attention rule
            for part in (self.llm, self.teachers):
                set_kernel(part, "sdpa")
        self.recomputation: Recomputation | None = None  # from `asvr.flops.recomputation`, if it depends on the batch
        self.transforms: list[Callable] = []  # from `asvr.models.transforms`, in the order in which they were applied

    # The forward pass ------------------------------------------------------------------------------------

    def forward(self, batch: Batch, totals: dict[str, float] | None = None) -> dict[str, Tensor]:
        """Return the losses and metrics of a batch, as sums.

        ``text`` is the text loss in nats. Each target has its loss under its name. ``correct_text`` is the number of
        right text predictions. The metrics of targets are ``<metric>_<name>``. A batch without images has no visual
        loss, and the encoder does not run.

        totals: for each loss, the number of supervised tokens in the whole optimisation step. With them the result has
        ``loss`` too: what this micro-batch adds to the objective.
        """
        embeds_BTH, features_INE = self.embed(batch)
        views = {target.name: target.mask(batch, training=self.training) for target in self.targets}
        shared = next((view for view in views.values() if view is not None and view.shared), None)
        alone = {name: view for name, view in views.items() if view is not None and view is not shared}
        taps = {tap for target in self.targets if target.name not in alone for tap in target.taps} | {-1}
        rule = self.attention_rule(batch)  # made once for all passes, since its masks are large
        hidden = self.hidden(batch, embeds_BTH, taps, shared, rule)

        out, zeros = {}, []
        if batch.num_text_targets:
            hidden_SH = hidden[-1][batch.text_source_S]
            with named_range("text_loss"):
                out["text"], out["correct_text"] = linear_cross_entropy(
                    hidden_SH, self.text_classifier(), batch.text_target_S, **getattr(self.llm, "logit_changes", {})
                )
        common = dict(batch=batch, features_INE=features_INE, embeds_BTH=embeds_BTH, training=self.training)
        common |= dict(rule=rule)
        for target in self.targets:
            if target.learns_from(batch):
                own, name = views[target.name], target.name
                states = self.hidden(batch, embeds_BTH, set(target.taps), own, rule) if name in alone else hidden
                seen = Seen(hidden=states, masked=own, **common)
                with named_range(f"target_{name}"):
                    truth = self.truth(target, batch, features_INE) | target.teach(seen)
                    out[name], metrics = target.loss(seen, truth)
                out |= {f"{metric}_{name}": value for metric, value in metrics.items()}
            if target.name not in alone and target.counts and target.reads_alone(training=self.training):
                zeros += [idle_pass(self, embeds_BTH, target)] if totals is not None else []
        if totals is not None:
            losses = [out[name] * (weight / totals[name]) for name, weight in self.weights().items() if name in out]
            out["loss"] = torch.stack([*losses, *zeros, zero_grad_path(self, batch, hidden[-1])]).sum()
        return out

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the LLM's input embeds_BTH and the encoder's features_INE (None without images).

        In embeds_BTH the projected visual features replace the image placeholders."""
        embeds_BTH = self.llm.embed(batch.input_ids_BT.masked_fill(batch.input_ids_BT == IMAGE_TOKEN, 0))
        if not batch.num_images:
            # Zeros keep these parts in the graph. They are added before the LLM, so that its backward pass runs in this
            # process as in those with images.
            if torch.is_grad_enabled():
                masking = heads_of(self, *(target for target in self.targets if target.shares_mask))
                embeds_BTH = embeds_BTH + zero_of(self.projector, self.separators, self.encoder, *masking)
            return embeds_BTH, None
        with named_range("encoder"):
            features_INE = (
                batch.features_INE if batch.features_INE is not None else self.encode(batch.pixels["encoder"])
            )
        with named_range("projector"):
            visual_INH = self.projector(features_INE.float()).to(embeds_BTH.dtype)  # frozen parts may be half precision
        visual_VH, cells = visual_INH.flatten(0, 1), batch.cells
        if cells is not None:
            visual_VH = visual_VH[cells.index_V]
        flat = embeds_BTH.flatten(0, 1).index_copy(0, batch.visual_position_V, visual_VH)
        if self.layout.num_separators and cells is not None:
            rows_KH = self.separators(cells.separator_K).to(flat.dtype)
            flat = flat.index_copy(0, cells.separator_position_K, rows_KH)
        elif self.layout.num_separators:
            flat = flat + zero_of(self.separators)
        return flat.view_as(embeds_BTH), features_INE

    def hidden(
        self,
        batch: Batch,
        embeds_BTH: Tensor,
        taps: set[int],
        masked: Masked | None = None,
        rule: AttentionRule | None = None,
    ) -> dict[int, Tensor]:
        """Run the LLM and return its hidden states by tap, each flat (B*T, H).

        masked: which visual tokens are masked in the LLM's input. None: no token is masked. rule: the
        `attention_rule` of the batch, if it has been computed before."""
        if masked is not None:
            embeds_BTH = masked.on(embeds_BTH, batch)
        mask_BT = batch.attention_mask_BT if batch.left_padded else None
        if rule is None or (masked is not None and masked.bits_V is not None):
            rule = self.attention_rule(batch, masked)
        with named_range("llm"):
            own = {} if rule is None else dict(rule=rule)
            states = self.llm.hidden(embeds_BTH, taps, mask_BT, batch.segments, **own)
        return {tap: states_BTH.flatten(0, 1) for tap, states_BTH in states.items()}

    @property
    def all_causal(self) -> bool:
        """Whether attention in the LLM is causal in every pass."""
        return self.visual_attention == "causal" and not any(target.rules for target in self.targets)

    def attention_rule(self, batch: Batch, masked: Masked | None = None) -> AttentionRule | None:
        """Which tokens see which others in the LLM. None: attention is causal."""
        bits_V = None if masked is None else masked.bits_V
        if not batch.num_images or (bits_V is None and self.visual_attention == "causal"):
            return None
        return rule_of(batch, bits_V)

    def text_classifier(self) -> nn.Module:
        """The classifier of the text loss: the LM head, and the rows that targets add to its softmax."""
        rows = [target.text_rows for target in self.targets if target.text_rows is not None]
        return JoinedClassifier(self.llm.lm_head, *rows) if rows else self.llm.lm_head

    def encode(self, pixels: Pixels) -> Tensor:
        """Return the encoder's features_INE.

        A frozen encoder runs without gradients and in its own precision. So its features, and the codes made from them,
        are the same whether they are computed in training or read from the cache."""
        if torch.is_grad_enabled() and is_trained(self.encoder):
            return self.encoder(pixels)
        with torch.no_grad(), full_float32(self.device):
            return self.encoder(pixels)

    @torch.no_grad()
    def truth(self, target: Target, batch: Batch, features_INE: Tensor | None) -> dict[str, Tensor]:
        """Return what a target has to reconstruct, from the cache or computed in float32, so that both are equal."""
        if target.name in batch.truth:
            return batch.truth[target.name]
        own = {name: batch.pixels[name] for name in target.views()}
        with full_float32(self.device):
            return target.truth(own, None if features_INE is None else features_INE.detach())

    # Training --------------------------------------------------------------------------------------------

    def train_step(
        self,
        window: list[Batch],
        optim_wrapper,
        *,
        totals: dict[str, float] | None = None,
        calls: Iterable[Callable] | None = None,
    ) -> dict[str, Tensor]:
        """Run one optimisation step over all micro-batches of ``window``.

        Each loss is divided by its number of supervised tokens in the whole step. So the objective does not depend on
        gradient accumulation or on the number of processes. Returns normalised losses and metrics, summed over the
        window, as tensors on the device (nothing is synchronised).

        totals: for each loss, the number of supervised tokens in the whole step. calls: the functions that run
        ``forward`` on each micro-batch. `asvr.engine.parallel` gives both if this process has only a part of the step.
        """
        totals = totals or self.count_targets(window)
        logs: dict[str, Tensor] = {}
        for batch, call in zip(window, calls or [self] * len(window), strict=True):
            if self.recomputation is not None:
                self.recomputation.apply(self, batch.input_ids_BT.numel(), len(batch.crops))
            with named_range("forward"), optim_wrapper.optim_context(self):
                out = call(batch.to(self.device), totals)
            with named_range("backward"):
                optim_wrapper.backward(out.pop("loss"))
            for key, value in out.items():
                value = value.detach() / totals[self.metrics.get(key, key.removeprefix("correct_"))]
                logs[key] = logs[key] + value if key in logs else value
        with named_range("optimizer"):
            optim_wrapper.step()
            optim_wrapper.zero_grad()
        with torch.no_grad():
            for target in self.targets:
                target.after_step(self, getattr(optim_wrapper, "skipped", None))
            after_step(self)
        return logs

    def set_progress(self, done: float) -> None:
        """Set how much of a stage is done (0 in its first step, 1 in its last). Weights of losses may depend on it."""
        for target in self.targets:
            target.set_progress(done)

    def weights(self) -> dict[str, float]:
        return {"text": 1.0, **{target.name: target.weight for target in self.targets}}

    def count_targets(self, window: list[Batch]) -> dict[str, float]:
        """Return the number by which each loss is divided, counted on the CPU: in general its supervised tokens."""
        counts = {"text": sum(batch.num_text_targets for batch in window)}
        return counts | {target.name: target.count(window, training=self.training) for target in self.targets}

    # Parts -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the forward pass. ``compute_device`` names it if the weights wait on another one."""
        return self.compute_device or next(self.llm.parameters()).device

    def components(self) -> dict[str, nn.Module]:
        """Return the parts of the model by name.

        A stage's ``train`` may name encoder, projector, llm and heads. The separators are trained with the projector.
        Losses are listed if they have weights or buffers, and are trained with the heads. Teachers are listed if they
        change in training, such as a moving average. Visual tokenizers are never trained here."""
        parts = dict(encoder=self.encoder, projector=self.projector, llm=self.llm, heads=self.heads)
        if self.layout.num_separators:
            parts["separators"] = self.separators
        if self.losses.state_dict():
            parts["losses"] = self.losses
        if len(self.teachers):
            parts["teachers"] = self.teachers
        return parts | {f"tokenizer.{name}": tokenizer for name, tokenizer in self.tokenizers.items()}

    def train_only(self, train: list[str]) -> None:
        """Train only what these entries name, see `asvr.models.trainable`. What a component froze itself stays so."""
        train_only(self, train, self.held)

    def train(self, mode: bool = True) -> "VLM":
        """Set training or eval mode. Frozen parts stay in eval mode.

        So a frozen encoder's batch norms do not change, and its dropout is off. A frozen LLM is the exception:
        gradients pass through it, and its gradient checkpointing works in training mode only."""
        super().train(mode)
        for name, module in self.components().items():
            if name not in ("llm", "losses") and not is_trained(module):
                module.eval()
        for target in self.targets:  # a loss that has only buffers is in use as long as its head is trained
            parts = [part for part in (target.head, target.criterion) if isinstance(part, nn.Module)]
            if len(parts) == 2 and not any(is_trained(part) for part in parts):
                target.criterion.eval()
        keep_statistics(self, self.held)
        return self

    def portable(self, config: dict) -> dict:
        """Return the ``config`` of this model without names of files, see `Component.portable`."""
        parts = {name: portable_of(getattr(self, name), config[name]) for name in ("encoder", "projector", "llm")}
        entries = zip(config["reconstruction"], self.targets, strict=True)
        targets = [target.portable(entry) for entry, target in entries]
        return dict(config, **parts, reconstruction=targets)

    def views(self) -> dict[str, object]:
        """The pixels that the model needs: name -> ``ImageTransform``."""
        found = {"encoder": self.encoder.transform}
        for target in self.targets:
            for name, transform in target.views().items():
                if name.partition(".")[0] != target.name:
                    raise ValueError(
                        f"{target.key}: {type(target).__name__}.views() names {name!r}: expected {target.name!r}, or "
                        f"'{target.name}.' and a name"
                    )
                found[name] = transform
        return found


def _modules(found: dict[str, object]) -> nn.ModuleDict:
    """Keep only the entries that are modules."""
    return nn.ModuleDict({name: module for name, module in found.items() if isinstance(module, nn.Module)})
