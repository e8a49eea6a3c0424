"""An encoder whose features are the discrete codes of an image.

Legend: ``I`` images, ``N`` visual tokens of an image, ``D`` code depth, ``V`` codes in a codebook, ``C`` code width.
"""

import inspect

from torch import Tensor, nn

from asvr.models.component import portable_of
from asvr.models.encoders.composite import CompositeEncoder, run_part
from asvr.registry import ENCODERS, VISUAL_TOKENIZERS


@ENCODERS.register_module()
class CodeEncoder(CompositeEncoder):
    """The codes of a frozen visual tokenizer as features: the LLM reads codes instead of continuous features.

    tokenizer: config of the visual tokenizer. A `SemanticTokenizer` needs its own ``encoder``.
    width: None: the features are the code vectors, concatenated over all depths (``D * C``). A number: each code has a
        learned embedding of this width, with one table for each depth, and the features are the sum over depths. The
        tables are trained with the encoder.
    """

    def __init__(self, *, tokenizer: dict, width: int | None = None, load_weights: bool = True):
        super().__init__()
        known = inspect.signature(VISUAL_TOKENIZERS.get(tokenizer["type"])).parameters
        given = dict(load_weights=load_weights) | (dict(encoder=None) if "encoder" in known else {})
        self.tokenizer = VISUAL_TOKENIZERS.build(tokenizer, default_args=given).requires_grad_(False).eval()
        own, self.tables = self.tokenizer, None
        rows, columns = own.grid
        if own.num_tokens != rows * columns or hasattr(own.transform, "grid_of"):
            raise ValueError(
                f"CodeEncoder tokenizer: it gives {own.num_tokens} codes for an image on a grid of {rows}x{columns}: "
                "expected one for each cell of one fixed grid"
            )
        if width is not None:
            if width < 1:
                raise ValueError(f"CodeEncoder width={width}: expected at least 1, or None for the code vectors")
            self.tables = nn.ModuleList(nn.Embedding(size, width) for size in own.codebook_sizes)
            for table in self.tables:  # so that the sum has unit variance
                nn.init.normal_(table.weight, std=own.depth**-0.5)
        self.width = own.depth * own.code_width if width is None else width
        self.grid, self.transform = (rows, columns), own.transform
        self.note_sources()

    def inner(self) -> dict[str, nn.Module]:
        return dict(tokenizer=self.tokenizer)

    def forward(self, pixels: Tensor) -> Tensor:
        codes_IND = run_part(self.tokenizer, self.tokenizer.encode, pixels)
        if self.tables is None:
            return self.tokenizer.embed(codes_IND).flatten(2)
        return sum(table(codes_I) for table, codes_I in zip(self.tables, codes_IND.unbind(-1), strict=True))

    def portable(self, config: dict) -> dict:
        return dict(super().portable(config), tokenizer=portable_of(self.tokenizer, config["tokenizer"]))
