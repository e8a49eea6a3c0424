"""The latents of an image as a reconstruction target: a head predicts the noise that was added to them.

Legend: ``I`` images, ``K`` noisy versions of each image, ``N`` visual tokens of an image, ``C`` latents of a token,
``H`` LLM width, ``P`` visual positions that carry the loss.
"""

import inspect
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.data.transforms import ImageTransform, Pixels
from asvr.models.encoders.base import grids_of
from asvr.models.heads.denoiser import Denoiser
from asvr.models.targets.base import Target, TensorSpec
from asvr.models.targets.seen import Seen
from asvr.registry import ENCODERS, TARGETS


@TARGETS.register_module()
class DenoisingTarget(Target):
    """The latents of a VAE, reconstructed by a small denoiser (ROSS, https://arxiv.org/abs/2410.09575).

    In training, noise is added to each image's latents at ``times`` random steps of a cosine schedule. The head
    predicts the noise from the noisy latents and the hidden states of the image's tokens. The loss is the squared
    error: its mean over ``times`` and channels, summed over tokens. Evaluation uses the same noise for each image, at
    evenly spaced steps. Some cells of an image may have no token. The head sees the latents of all cells; only cells
    with a token carry the loss.

    teacher: config of a `LatentEncoder`, or of any encoder whose grid is the model's. If it has an argument ``grid``,
        it gets the encoder's grid.
    normalize: whether a token's latents go through a layer norm without weights first. This is for features, which are
        not scaled as a VAE's latents are.
    tap: which hidden state, see `Target`. times: how many noisy versions of an image each training step has.
    width, layers, num_heads, steps: options of the head, see `Denoiser`.

    Raises ``ValueError`` if the grids differ, for ``supervise``, and for an encoder with several grids or for images in
    their own resolution.
    """

    def __init__(
        self,
        *,
        teacher: dict,
        encoder,
        llm,
        normalize: bool = False,
        tap: int = -1,
        times: int = 4,
        steps: int = 1000,
        width: int = 1024,
        layers: int = 3,
        num_heads: int = 16,
        load_weights: bool = True,
        **own,
    ):
        super().__init__(encoder=encoder, llm=llm, taps=(tap,), load_weights=load_weights, **own)
        self._check(encoder, times, steps, width, num_heads, layers)
        self.normalize = normalize
        self.tap, self.times, self.steps = tap, times, steps
        self.teacher = _build_teacher(teacher, encoder, load_weights)
        if tuple(self.teacher.grid) != self.grid:
            raise ValueError(
                f"{self.key}.teacher: its grid is {'x'.join(map(str, self.teacher.grid))}, the encoder's "
                f"{'x'.join(map(str, self.grid))}: leave image_size and grid out"
            )
        shown = getattr(encoder.transform, "shown", encoder.transform)
        self.center_crop = getattr(shown, "center_crop", False)  # so that a token and its latents show the same place
        self.head = Denoiser(
            hidden_size=llm.hidden_size,
            channels=self.teacher.width,
            grid=self.grid,
            width=width,
            layers=layers,
            num_heads=num_heads,
            steps=steps,
        )

    def _check(self, encoder, times: int, steps: int, width: int, num_heads: int, layers: int) -> None:
        key = self.key
        if layers < 1:
            raise ValueError(f"{key}.layers={layers}: expected at least 1")
        if self.positions.supervise is not None:
            raise ValueError(f"{key}.supervise: DenoisingTarget predicts the noise of whole images; leave it out")
        if hasattr(encoder.transform, "grid_of"):
            raise ValueError(
                f"{key}: DenoisingTarget needs images of one fixed size, but the encoder reads images in their own "
                "resolution"
            )
        if len(grids_of(encoder)) > 1:
            raise ValueError(
                f"{key}: DenoisingTarget needs one grid, but the encoder gives the tokens of several grids"
            )
        if times < 1 or steps < times:
            raise ValueError(
                f"{key}.times={times}, steps={steps}: expected times of at least 1, and at least as many steps"
            )
        if num_heads < 1 or width % num_heads or width % 4:
            raise ValueError(f"{key}.width={width}: expected a multiple of 4 and of num_heads={num_heads}")

    # The contract of a target ------------------------------------------------------------------------------

    def views(self) -> dict[str, ImageTransform]:
        return {self.name: replace(self.teacher.transform, center_crop=self.center_crop)}

    def truth_spec(self) -> dict[str, TensorSpec]:
        return dict(latents=TensorSpec((self.num_tokens, self.teacher.width), torch.float32))

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        """``latents`` (I, N, C)."""
        latents = self.teacher(pixels[self.name]).float()
        return dict(latents=F.layer_norm(latents, latents.shape[-1:]) if self.normalize else latents)

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error_IN, there_IN = self.errors(seen, truth)
        return (error_IN if there_IN is None else error_IN * there_IN).sum(), {}

    @torch.no_grad()
    def inspect(self, seen: Seen, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``error``: the squared error of the predicted noise. It is 1 if the prediction is zero."""
        error_IN, there_IN = self.errors(seen, truth)
        return dict(error=error_IN if there_IN is None else error_IN.masked_fill(~there_IN, torch.nan))

    def describe(self) -> str:
        return f"{self.teacher.width} latents"

    # Noise and hidden states -------------------------------------------------------------------------------

    def errors(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return error_IN, the mean squared error of each token, and there_IN: which tokens have a hidden state.

        there_IN is None if all of them have one."""
        latents_INC = truth["latents"].float()
        hidden_INH, there_IN = self.states(seen)
        time_KI, noise_KINC = self.noise(latents_INC, training=seen.training)
        told_KINC = self.head(self.head.noisy(latents_INC, noise_KINC, time_KI), time_KI, hidden_INH)
        return (told_KINC.float() - noise_KINC).square().mean((0, -1)), there_IN

    def noise(self, latents_INC: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """Return time_KI and noise_KINC. In training they are drawn on the device, so that nothing waits for it."""
        images, device = len(latents_INC), latents_INC.device
        if training:
            time_KI = torch.randint(self.steps, (self.times, images), device=device)
            return time_KI, torch.randn(self.times, *latents_INC.shape, device=device)
        time_K = (torch.arange(self.times, device=device) * 2 + 1) * self.steps // (2 * self.times)
        numbers = torch.Generator("cpu").manual_seed(0)
        noise_K1NC = torch.randn(self.times, 1, *latents_INC.shape[1:], generator=numbers, device="cpu").to(device)
        return time_K[:, None].expand(-1, images), noise_K1NC.expand(-1, images, -1, -1)

    def states(self, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """Return hidden_INH, with zeros for cells without a hidden state, and there_IN, see `errors`."""
        source_P, token_P = self.places(seen)
        hidden_PH, shape = seen.hidden[self.tap][source_P].float(), (seen.batch.num_images, self.num_tokens)
        if token_P is None:
            return hidden_PH.unflatten(0, shape), None
        cells = shape[0] * shape[1]
        hidden_INH = hidden_PH.new_zeros(cells, hidden_PH.shape[-1]).index_copy(0, token_P, hidden_PH)
        there_IN = torch.zeros(cells, dtype=torch.bool, device=token_P.device).index_fill(0, token_P, True)
        return hidden_INH.unflatten(0, shape), there_IN.view(shape)


def _build_teacher(config: dict, encoder, load_weights: bool):
    fields = inspect.signature(ENCODERS.get(config["type"])).parameters
    given = dict(load_weights=load_weights)
    if "grid" in fields and config.get("image_size") is None:
        given["grid"] = encoder.grid
    return ENCODERS.build(config, default_args=given)
