"""What the data side hands to the model.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images in the batch, ``N`` visual tokens of an image,
``E`` encoder width, ``D`` code depth, ``S`` supervised text positions.
"""

from dataclasses import dataclass, field, fields

from torch import Tensor

# In input_ids, the place of one visual token (the number LLaVA uses for a whole image).
IMAGE_TOKEN = -200
# In labels, a position that is not supervised.
IGNORE = -100


@dataclass
class Batch:
    """One micro-batch. Every index is computed by the collate function, on the CPU, so that the
    training step needs no ``nonzero`` and no synchronisation.

    input_ids_BT: token ids, ``IMAGE_TOKEN`` where a visual token goes, padded.
    attention_mask_BT: True on real tokens. left_padded: whether the padding of any row stands in front of it.
    text_source_S: flat positions (``b * T + t``) whose hidden state predicts ``text_target_S``.
    image_positions_IN: flat positions of each image's visual tokens, in raster order.
    has_previous_I: False where an image is the first thing of its sample, so that with ``shift=1`` no
        position predicts its first token. A list of Python bools: it decides shapes. preceded_P: flat indices into
        (I*N) of the visual tokens that a position predicts then; None where it is all of them.
    pixels: view name -> (I, 3, h, w). Absent when features and codes come from a cache.
    features_INE: cached encoder features. codes: target name -> (I, N, D) cached codes.
    sample_ids: "file:index" of each sample, for messages. refusals: what was left out
        (`asvr.data.refusals.Refusal`). num_tokens: real positions, pads not counted, known on the CPU.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    text_source_S: Tensor
    text_target_S: Tensor
    image_positions_IN: Tensor
    has_previous_I: list
    preceded_P: Tensor | None = None
    pixels: dict = field(default_factory=dict)
    features_INE: Tensor | None = None
    codes: dict = field(default_factory=dict)
    sample_ids: list = field(default_factory=list)
    refusals: list = field(default_factory=list)
    num_tokens: int = 0
    left_padded: bool = False

    @property
    def num_images(self) -> int:
        return self.image_positions_IN.shape[0]

    @property
    def num_text_targets(self) -> int:
        return self.text_source_S.shape[0]

    def num_visual_targets(self, shift: int) -> int:
        """Visual positions that carry a loss; with ``shift=1`` one fewer for each image with nothing in front."""
        skipped = self.has_previous_I.count(False) if shift else 0
        return self.image_positions_IN.numel() - skipped

    def to(self, device, non_blocking: bool = True) -> "Batch":
        def move(value):
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            return value

        return Batch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader, so that the copy to the accelerator overlaps with the step."""

        def pin(value):
            if isinstance(value, Tensor):
                return value.pin_memory()
            if isinstance(value, dict):
                return {key: pin(item) for key, item in value.items()}
            return value

        return Batch(**{f.name: pin(getattr(self, f.name)) for f in fields(self)})


def visual_sources(batch: Batch, shift: int) -> tuple[Tensor, Tensor | None]:
    """Which flat hidden position predicts which visual token.

    Returns ``source_P``, flat positions into (B*T), and ``token_P``, flat indices into (I*N), or None
    where it is all of them. ``shift=0``: the visual token's own position (the released code);
    ``shift=1``: the position before it (the paper's equation 2).
    """
    source_IN = batch.image_positions_IN - shift
    if shift == 0 or batch.preceded_P is None:
        return source_IN.flatten(), None
    return source_IN.flatten()[batch.preceded_P], batch.preceded_P
