"""The training step of transformers' own LLaVA, for comparison. It has the same weights and samples as ours.

The forward pass is ``LlavaForConditionalGeneration``, as transformers' Trainer calls it: rows padded to the longest,
with a mask, and logits of every position. Micro-batches, precision and the LLM's activation checkpointing are those of
the config (``auto`` is ``full``), and the optimiser is the same fused AdamW.

Legend: ``B`` rows, ``T`` tokens in a row.
"""

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from asvr.data.batch import IGNORE, IMAGE_TOKEN, Batch
from asvr.models.encoders import HFVisionEncoder
from asvr.models.projectors import MLPProjector

IMAGE_ID = 2  # stands for the image in the ids; the benchmark's texts have no id below 3


class HuggingFaceStep(nn.Module):
    """A training step of transformers' LLaVA, made of the modules of a `VLM`.

    dtype: of autocast, or None. Unlike our own, it keeps the half-precision copies of weights for a whole forward pass.

    Raises ``ValueError`` if the `VLM` is not a LLaVA: it has a target, a layout, another encoder or projector.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        encoder, projector = model.encoder, model.projector
        two_layers = type(projector) is MLPProjector and projector.place is None and len(projector.mlp) == 3
        alike = not model.targets and type(encoder) is HFVisionEncoder and two_layers
        if not alike or model.layout.fixed is None or model.layout.fixed.num_tokens != encoder.num_tokens:
            raise ValueError(
                "--transformers: its LLaVA has a Hugging Face encoder, an MLP of two layers, whole images and no "
                "reconstruction target: give a config of this kind, such as configs/benchmarks/small_llava.py"
            )
        object.__setattr__(self, "model", model)  # not a child: its modules are those of `llava`
        config = LlavaConfig(
            vision_config=encoder.model.config,
            text_config=model.llm.model.config,
            image_token_index=IMAGE_ID,
            image_seq_length=encoder.num_tokens,
            vision_feature_layer=encoder.layer,
            vision_feature_select_strategy="full",
        )
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.llava = LlavaForConditionalGeneration(config)
        self.llava.model.vision_tower = encoder.model
        self.llava.model.language_model = model.llm.model.get_decoder()
        self.llava.model.multi_modal_projector.linear_1 = projector.mlp[0]
        self.llava.model.multi_modal_projector.linear_2 = projector.mlp[2]
        self.llava.lm_head = model.llm.lm_head
        assert not any(p.is_meta for p in self.llava.parameters()), "a part of transformers' LLaVA is not ours"
        self.llava.train()
        self.dtype = dtype

    def forward(self, batch: Batch, num_tokens: float) -> Tensor:
        """Return the text loss in nats, divided by ``num_tokens``, the supervised tokens of the whole step."""
        labels = torch.full_like(batch.input_ids_BT, IGNORE).flatten()
        labels[batch.text_source_S + 1] = batch.text_target_S
        return self.llava(
            input_ids=batch.input_ids_BT.masked_fill(batch.input_ids_BT == IMAGE_TOKEN, IMAGE_ID),
            pixel_values=batch.pixels.get("encoder"),
            attention_mask=batch.attention_mask_BT.long(),
            labels=labels.view_as(batch.input_ids_BT),
            num_items_in_batch=num_tokens,
            use_cache=False,
        ).loss

    def train_step(self, window: list[Batch], optim_wrapper) -> dict[str, Tensor]:
        """One optimisation step. The loss is normalised as in `VLM.train_step`."""
        total, device = self.model.count_targets(window)["text"], self.model.device
        losses = []
        for batch in window:
            with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
                loss = self(batch.to(device), total)
            optim_wrapper.backward(loss)
            losses.append(loss.detach())
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return dict(text=torch.stack(losses).sum())
