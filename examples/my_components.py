"""An encoder, a projector, a head and a loss of your own. The library is not changed.

``configs/examples/custom_components.py`` names this file in ``custom_imports`` and the classes by ``type``.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``H`` LLM width, ``P`` supervised
visual positions, ``D`` code depth, ``C`` code width, ``W`` head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.data.transforms import ImageTransform
from asvr.models.component import Component
from asvr.models.encoders.base import Encoder
from asvr.models.heads.base import Head
from asvr.registry import ENCODERS, HEADS, LOSSES, PROJECTORS


@ENCODERS.register_module()
class ColorPatches(Encoder):
    """An encoder without weights. Its features are the mean colours of ``cells`` x ``cells`` parts of each patch.

    An encoder sets ``width``, ``grid`` and ``transform``. The library reads all other sizes from them.
    """

    def __init__(self, *, image_size: int = 64, patch: int = 8, cells: int = 4, load_weights: bool = True):
        super().__init__()
        if image_size % patch or patch % cells:
            raise ValueError(
                f"ColorPatches: {cells} cells must divide a patch of {patch}, and it image_size={image_size}"
            )
        self.cell, self.cells = patch // cells, cells
        self.width = 3 * cells * cells
        self.grid = (image_size // patch, image_size // patch)
        self.transform = ImageTransform(size=(image_size, image_size))

    def forward(self, pixels: Tensor) -> Tensor:
        colors = F.avg_pool2d(pixels, self.cell)  # (I, 3, rows * cells, columns * cells)
        return F.unfold(colors, self.cells, stride=self.cells).transpose(1, 2)


@PROJECTORS.register_module()
class NormProjector(Component):
    """A projector with a layer norm and a linear map, features_INE -> visual_INH. The library gives both widths."""

    def __init__(self, *, in_width: int, out_width: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=eps)
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, features_INE: Tensor) -> Tensor:
        return self.linear(self.norm(features_INE))


@HEADS.register_module()
class AdditiveHead(Head):
    """A head that adds the code vectors of the depths before to the hidden state. It has no attention over depths.

    The library gives hidden_size, codebook_sizes and code_width.
    """

    def __init__(self, *, hidden_size: int, codebook_sizes: list[int], code_width: int, width: int = 128):
        super().__init__()
        self.hidden_input = nn.Linear(hidden_size, width)
        self.code_input = nn.Linear(code_width, width, bias=False)
        self.classifiers = nn.ModuleList([nn.Linear(width, size) for size in codebook_sizes])

    def forward(self, hidden_PH: Tensor, vectors_PDC: Tensor) -> Tensor:
        before_PDC = F.pad(vectors_PDC[:, :-1].cumsum(1), (0, 0, 1, 0))  # zeros before the first depth
        return F.gelu(self.hidden_input(hidden_PH).unsqueeze(1) + self.code_input(before_PDC))


@LOSSES.register_module()
class FocalCodeLoss(nn.Module):
    """Focal cross-entropy: codes that the model already predicts well count less (https://arxiv.org/abs/1708.02002).

    A loss returns the sum over positions, which the model normalises, and the number of right codes by depth.
    """

    def __init__(self, *, gamma: float = 1.0):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"FocalCodeLoss gamma={gamma}: expected a number >= 0")
        self.gamma = gamma

    def forward(self, states_PDW: Tensor, classifiers: nn.ModuleList, codes_PD: Tensor) -> tuple[Tensor, Tensor]:
        losses, corrects = [], []
        for d, classifier in enumerate(classifiers):
            logits_PV = classifier(states_PDW[:, d]).float()
            nats_P = F.cross_entropy(logits_PV, codes_PD[:, d], reduction="none")
            losses.append(((1 - torch.exp(-nats_P)) ** self.gamma * nats_P).sum())
            corrects.append((logits_PV.argmax(-1) == codes_PD[:, d]).sum(dtype=torch.float32))
        return torch.stack(losses).mean(), torch.stack(corrects)
