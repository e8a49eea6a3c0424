"""The model on one page: a vision-language model that also reconstructs what it sees.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images of the encoder in the batch (each crop of an image that is cut
into several is one), ``N`` visual tokens of one, ``V`` visual tokens in the rows, ``H`` LLM width, ``E`` encoder width,
``D`` code depth, ``C`` code width, ``S`` supervised text positions, ``P`` supervised visual positions, ``M`` cells of a
tokenizer's own grid.
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
from asvr.models.component import portable_of
from asvr.models.losses import JoinedClassifier, linear_cross_entropy
from asvr.models.masking import Masked
from asvr.models.separators import Separators
from asvr.models.targets import Seen, Target, build_target, check_together
from asvr.models.trainable import keep_statistics, train_only
from asvr.models.tree import check_tree, is_trained
from asvr.models.visual_attention import MODES, AttentionRule, rule_of
from asvr.models.zero_grads import heads_of, idle_pass, zero_grad_path, zero_of
from asvr.registry import ENCODERS, LLMS, MODELS, PROJECTORS, TARGETS


@MODELS.register_module()
class VLM(nn.Module):
    """Encoder, projector and LLM, with a list of reconstruction targets.

    encoder, projector, llm: component configs; widths between them are derived.
    layout: which visual tokens an image gets, see `asvr.data.layouts`; None: all that the encoder gives of it.
    reconstruction: the configs of the targets, ``dict(name, type, ...)``, see `asvr.models.targets`; without a ``type``
        a `CodeTarget`. ``[]`` is LLaVA, one semantic entry ASVR, a pixel entry the appearance ablation.
    visual_attention: ``causal``, or ``bidirectional``: the visual tokens of an image see each other in the LLM.
    vocab_size: `TextTokenizer.num_ids`; None only where the LLM's configuration tells it.
    load_weights: False builds the architecture alone (under ``torch.device("meta")``: in no memory).
    defer_llm: leave the LLM's weights in their files, where it can; see `HFCausalLM.materialise`.
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
        self.separators = Separators(self.layout.num_separators, self.llm.hidden_size)  # last: it draws numbers
        self.metrics = {f"{metric}_{target.name}": target.name for target in self.targets for metric in target.metrics}
        check_tree(self, [*self.targets, *(target.criterion for target in self.targets)])
        self.held: set[str] = set()  # names of parameters that `train_only` froze
        if not self.all_causal:  # until `use_attention` chooses: transformers' own kernels take no rule
            for part in (self.llm, self.teachers):
                set_kernel(part, "sdpa")
        self.transforms: list[Callable] = []  # of `asvr.models.transforms`, in the order that they were applied

    # The forward pass ------------------------------------------------------------------------------------

    def forward(self, batch: Batch, totals: dict[str, float] | None = None) -> dict[str, Tensor]:
        """Summed losses (``text`` in nats, and each target's by its name), and sums of what is counted besides:
        ``correct_text``, the right predictions, and the targets' ``<metric>_<name>``.

        A batch without images carries no visual loss and encodes nothing. totals: supervised tokens of the whole
        optimisation step by loss; with them ``loss`` is there too, what this micro-batch adds to the objective.
        """
        embeds_BTH, features_INE = self.embed(batch)
        views = {target.name: target.mask(batch, training=self.training) for target in self.targets}
        shared = next((view for view in views.values() if view is not None and view.shared), None)
        alone = {name: view for name, view in views.items() if view is not None and view is not shared}
        taps = {tap for target in self.targets if target.name not in alone for tap in target.taps} | {-1}
        rule = self.attention_rule(batch)  # made once: its masks are as large as attention
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
        """embeds_BTH, projected visual features on their placeholders; and the features, None without images."""
        embeds_BTH = self.llm.embed(batch.input_ids_BT.masked_fill(batch.input_ids_BT == IMAGE_TOKEN, 0))
        if not batch.num_images:
            if torch.is_grad_enabled():  # in front of the LLM, so that its backward pass runs here as it does elsewhere
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
        """Hidden states by tap, flat (B*T, H). masked: which visual tokens the LLM gets masked; None: it gets all.
        rule: `attention_rule` of the batch, where it is made already."""
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
        """Who sees whom in the LLM; None: all is causal."""
        bits_V = None if masked is None else masked.bits_V
        if not batch.num_images or (bits_V is None and self.visual_attention == "causal"):
            return None
        return rule_of(batch, bits_V)

    def text_classifier(self) -> nn.Module:
        """What the softmax of the text loss runs over: the LM head, and rows that targets add to it."""
        rows = [target.text_rows for target in self.targets if target.text_rows is not None]
        return JoinedClassifier(self.llm.lm_head, *rows) if rows else self.llm.lm_head

    def encode(self, pixels: Pixels) -> Tensor:
        """features_INE. A frozen encoder runs without a graph and in its own precision, so that its features, and
        the codes made of them, are the same online and cached."""
        if torch.is_grad_enabled() and is_trained(self.encoder):
            return self.encoder(pixels)
        with torch.no_grad(), full_float32(self.device):
            return self.encoder(pixels)

    @torch.no_grad()
    def truth(self, target: Target, batch: Batch, features_INE: Tensor | None) -> dict[str, Tensor]:
        """What a target reconstructs: cached, or made of pixels and features, in float32 so that both are the same."""
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
        """One optimisation step over all micro-batches of ``window``.

        Each loss is divided by its number of supervised tokens in the whole step, so that neither accumulation nor
        the number of processes changes the objective. Returns sums over the window as tensors on the device (no
        synchronisation): losses and accuracies, already normalised.

        totals: those numbers, and calls: what runs ``forward`` on each micro-batch; given by `asvr.engine.parallel`,
        where this process has only a part of the step.
        """
        totals = totals or self.count_targets(window)
        logs: dict[str, Tensor] = {}
        for batch, call in zip(window, calls or [self] * len(window), strict=True):
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
        return logs

    def set_progress(self, done: float) -> None:
        """Before each step of a stage: from 0 in the first to 1 in the last, which weights of losses may follow."""
        for target in self.targets:
            target.set_progress(done)

    def weights(self) -> dict[str, float]:
        return {"text": 1.0, **{target.name: target.weight for target in self.targets}}

    def count_targets(self, window: list[Batch]) -> dict[str, float]:
        """By what each loss of a window is divided, such as its supervised tokens: counts that the collate function
        made, so nothing is synchronised."""
        counts = {"text": sum(batch.num_text_targets for batch in window)}
        return counts | {target.name: target.count(window, training=self.training) for target in self.targets}

    # Parts -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.llm.parameters()).device

    def components(self) -> dict[str, nn.Module]:
        """The parts that a stage's ``train`` may name; separators, which are trained with the projector; the losses,
        where they have weights or buffers, which are trained with the heads; teachers that follow the training; and the
        tokenizers, which are never trained here."""
        parts = dict(encoder=self.encoder, projector=self.projector, llm=self.llm, heads=self.heads)
        if self.layout.num_separators:
            parts["separators"] = self.separators
        if self.losses.state_dict():
            parts["losses"] = self.losses
        if len(self.teachers):
            parts["teachers"] = self.teachers
        return parts | {f"tokenizer.{name}": tokenizer for name, tokenizer in self.tokenizers.items()}

    def train_only(self, train: list[str]) -> None:
        """Give gradients to what these entries name and to nothing else, see `asvr.models.trainable`; what a component
        froze itself stays frozen."""
        train_only(self, train, self.held)

    def train(self, mode: bool = True) -> "VLM":
        """As usual, but what is frozen stays in eval mode: batch norms and dropout of a frozen encoder must not move.
        A frozen LLM is the exception: gradients pass through it, and its gradient checkpointing works in training
        mode only."""
        super().train(mode)
        for name, module in self.components().items():
            if name not in ("llm", "losses") and not is_trained(module):
                module.eval()
        for target in self.targets:  # a loss with buffers alone is in use as long as its head is trained by it
            parts = [part for part in (target.head, target.criterion) if isinstance(part, nn.Module)]
            if len(parts) == 2 and not any(is_trained(part) for part in parts):
                target.criterion.eval()
        keep_statistics(self, self.held)
        return self

    def portable(self, config: dict) -> dict:
        """``config`` of this model, without the files that it names; see `Component.portable`."""
        parts = {name: portable_of(getattr(self, name), config[name]) for name in ("encoder", "projector", "llm")}
        entries = zip(config["reconstruction"], self.targets, strict=True)
        targets = [target.portable(entry) for entry, target in entries]
        return dict(config, **parts, reconstruction=targets)

    def views(self) -> dict[str, object]:
        """What pixels the model wants: name -> ``ImageTransform``."""
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
    """Those that are modules."""
    return nn.ModuleDict({name: module for name, module in found.items() if isinstance(module, nn.Module)})
