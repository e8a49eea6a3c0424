"""The head of a target without codes: it maps a hidden state to features.

Legend: ``P`` visual positions, ``H`` LLM width, ``E`` width of the features.
"""

from torch import Tensor, nn

from asvr.models.component import Component

ACTIVATIONS = dict(gelu=nn.GELU, relu=nn.ReLU, silu=nn.SiLU)
FIELDS = ("layers", "width", "activation", "norm")


class FeatureMLP(Component):
    """Linear layers with an activation between them: ``hidden_PH -> features_PE``, row by row.

    layers: number of linear layers. width: width between the layers; None: the LLM's width. activation: ``gelu``,
    ``relu`` or ``silu``. norm: whether a layer norm comes first. key: the config key, for messages.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        out_width: int,
        layers: int = 2,
        width: int | None = None,
        activation: str = "gelu",
        norm: bool = False,
        key: str = "mlp",
    ):
        super().__init__()
        for name, value in dict(layers=layers, width=hidden_size if width is None else width).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}.{name}={value!r}: expected a whole number of at least 1")
        if activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"{key}.activation={activation!r}: expected one of {known}")
        widths = [hidden_size, *[width or hidden_size] * (layers - 1), out_width]
        parts: list[nn.Module] = [nn.LayerNorm(hidden_size)] if norm else []
        for i, (own, other) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            parts += [ACTIVATIONS[activation]()] if i else []
            parts.append(nn.Linear(own, other))
        self.mlp = nn.Sequential(*parts)

    def forward(self, hidden_PH: Tensor) -> Tensor:
        return self.mlp(hidden_PH)


def build_mlp(config: dict, *, hidden_size: int, out_width: int, key: str) -> FeatureMLP:
    """Build a `FeatureMLP` from config fields. Raises ``ValueError``, which names ``key``, for an unknown field."""
    if unknown := sorted(set(config) - set(FIELDS)):
        raise ValueError(f"{key}.{unknown[0]}: unknown; expected some of {', '.join(FIELDS)}")
    return FeatureMLP(hidden_size=hidden_size, out_width=out_width, key=key, **config)
