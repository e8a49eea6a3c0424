"""The training step of the released code, for comparison. It has the same model, weights, samples and losses as ours.

It differs from our step in these points:

- Rows are padded to the longest, with a mask.
- Logits of every position over the whole vocabulary are computed, in float32.
- Every image goes through the tokenizer's own vision tower too, and the codes of both branches are computed. The
  appearance codes are not used.
- Every layer of the head is computed again for the backward pass, and the logits of all depths exist at once.
- A row without an image gets a blank one, whose results are multiplied by zero.

Both have the micro-batches and the LLM's activation checkpointing of the config. (``asvr_llama.py``, ``asvr_arch.py``
and ``rqvaesigliptransformer`` of the released code.)

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images, ``N`` visual tokens of an image, ``V`` vocabulary, ``D`` depth,
``H`` LLM width.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.data.batch import IGNORE, Batch
from asvr.models.heads import DepthTransformerHead
from asvr.models.losses import CodeCrossEntropy, changed_logits
from asvr.models.targets import CodeTarget
from asvr.models.tokenizers import SemanticTokenizer

APPEARANCE_LAYER = 6


def check_objective(model: nn.Module) -> None:
    """Raise ``ValueError`` if the released code does not have the model's objective."""
    targets = model.targets
    if model.layout.fixed is None or model.layout.fixed.num_tokens != model.encoder.num_tokens:
        raise ValueError(
            "--plain: in the released code all images have the same number of tokens, but not in this config"
        )
    if model.visual_attention != "causal":
        raise ValueError("--plain: attention is causal in the released code: leave out model.visual_attention")
    if len(targets) > 1:
        raise ValueError(
            f"--plain: the released code has at most one reconstruction target, this config has {len(targets)}"
        )
    for target in targets:
        if type(target) is not CodeTarget:
            raise ValueError(
                f"--plain: target {target.name!r} is a {type(target).__name__}, but the released code predicts codes"
            )
        expected = dict(tokenizer=(type(target.tokenizer), SemanticTokenizer), tap=(target.tap, -1))
        expected |= dict(depth_transformer=(isinstance(target.head, DepthTransformerHead), True))
        expected |= dict(supervise=(target.positions.supervise, None), loss=(type(target.criterion), CodeCrossEntropy))
        if isinstance(target.criterion, CodeCrossEntropy):
            expected |= dict(depth_weights=(target.criterion.depth_weights, None))
            expected |= dict(label_smoothing=(target.criterion.label_smoothing, 0.0))
        for name, (own, known) in expected.items():
            if own != known:
                raise ValueError(
                    f"--plain: target {target.name!r} has {name}={own!r}, but the released code has {known!r}"
                )
        if not target.shares_encoder:
            raise ValueError(f"--plain: target {target.name!r} must quantise the model's own encoder features")


class PlainStep(nn.Module):
    """The released code's forward pass with the parts of a `VLM`, which has one semantic target or none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        check_objective(model)
        self.target = model.targets[0] if model.targets else None
        if self.target is not None:
            self.tower = copy.deepcopy(model.encoder).requires_grad_(False).eval()
            self.appearance = copy.deepcopy(self.target.tokenizer.quantizer)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Summed losses in nats, as in `VLM.forward`."""
        model = self.model
        blank = self._blank_pictures(batch)
        pixels = torch.cat([batch.pixels["encoder"], blank]) if "encoder" in batch.pixels else blank
        features_INE = model.encode(pixels)
        visual_INH = model.projector(features_INE.float())
        embeds_BTH = model.llm.embed(batch.input_ids_BT.clamp(min=0))
        flat = embeds_BTH.flatten(0, 1).index_copy(
            0, batch.visual_position_V, visual_INH[: batch.num_images].flatten(0, 1)
        )
        embeds_BTH = flat.view_as(embeds_BTH) + 0 * visual_INH[batch.num_images :].sum()
        out = model.llm.model.get_decoder()(
            inputs_embeds=embeds_BTH,
            attention_mask=batch.attention_mask_BT.long(),
            use_cache=False,
        )
        logits_BTV = model.llm.lm_head(out.last_hidden_state).float()
        logits_BTV = changed_logits(logits_BTV, **getattr(model.llm, "logit_changes", {}))
        labels = torch.full_like(batch.input_ids_BT, IGNORE).flatten()
        labels[batch.text_source_S] = batch.text_target_S
        losses = dict(text=F.cross_entropy(logits_BTV.flatten(0, 1), labels, ignore_index=IGNORE, reduction="sum"))
        if self.target is not None:
            losses[self.target.name] = self._visual_loss(batch, pixels, out.last_hidden_state.flatten(0, 1))
        return losses

    def train_step(self, window: list[Batch], optim_wrapper) -> dict[str, Tensor]:
        """One optimisation step. Losses are normalised as in `VLM.train_step`."""
        totals, weights, logs = self.model.count_targets(window), self.model.weights(), {}
        for batch in window:
            with optim_wrapper.optim_context(self.model):
                out = self(batch.to(self.model.device))
                loss = sum(value * (weights[name] / totals[name]) for name, value in out.items())
            optim_wrapper.backward(loss)
            for name, value in out.items():
                logs[name] = logs.get(name, 0) + value.detach() / totals[name]
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return logs

    def _blank_pictures(self, batch: Batch) -> Tensor:
        """A blank image for each row without an image."""
        shape = (3, *self.model.encoder.transform.size)
        rows = batch.input_ids_BT.shape[0] - batch.num_images
        return torch.zeros(max(0, rows), *shape, device=batch.input_ids_BT.device)

    def _visual_loss(self, batch: Batch, pixels: Tensor, hidden: Tensor) -> Tensor:
        target, count = self.target, batch.num_images
        with torch.no_grad(), full_float32(pixels.device):
            states = self.tower.model(pixel_values=pixels.to(self.tower.model.dtype), output_hidden_states=True)
            codes_IND = target.tokenizer.quantizer.encode(states.hidden_states[self.tower.layer].float())
            self.appearance.encode(states.hidden_states[APPEARANCE_LAYER].float())
        positions_V = batch.visual_position_V - target.shift
        blank = hidden.new_zeros((len(pixels) - count) * batch.num_cells, hidden.shape[-1])
        hidden_PH = torch.cat([hidden[positions_V], blank])
        codes_PD = codes_IND.flatten(0, 1)
        with torch.no_grad():
            vectors_PDC = target.tokenizer.embed(codes_PD)
        states_PDW = target.head.states(hidden_PH.float(), vectors_PDC, mode="full")
        logits = [classifier(states_PDW[:, d]).float() for d, classifier in enumerate(target.head.classifiers)]
        kept = len(positions_V)
        losses = []
        for d, logits_PV in enumerate(logits):
            each_P = F.cross_entropy(logits_PV, codes_PD[:, d], reduction="none")
            losses.append(each_P[:kept].sum() + 0 * each_P[kept:].sum())
        return torch.stack(losses).mean()


def plain_optimizer(model: nn.Module, config: dict) -> torch.optim.Optimizer:
    """AdamW as in the released code (transformers' Trainer), not fused.

    It updates one parameter after another. torch's default on CUDA updates all at once, which needs one more copy of
    them. At 7B one card has no memory for it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=config["lr"], betas=tuple(config.get("betas", (0.9, 0.999))), weight_decay=0.0, foreach=False
    )
