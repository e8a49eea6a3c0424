"""Random samples for benchmarks. Their lengths are as in LLaVA's instruction data."""

import numpy as np
from PIL import Image

from asvr.data.batch import IGNORE, IMAGE_TOKEN

# The number of text tokens is log-normal: median 150, sigma 0.7, so a mean of about 190 and a long tail. One sample in
# 8 has no image, so that a step of 8 samples has one. In llava_v1_5_mix665k it is half as many (40,688 of 665,298).
MEDIAN, SIGMA, SHORTEST = 150, 0.7, 20
TEXT_ONLY = 1 / 8
ANSWERS = 0.6  # share of the text that is supervised, at the end of the sample
IMAGE_SIZE = (640, 480)  # COCO's usual size, width and height in pixels


class SyntheticSamples:
    """A data set of random items. The same seed gives the same items.

    text_only: the share of samples without an image; one of every ``1 / text_only`` samples has none. max_length: the
    longest row, with visual tokens; longer texts are cut. vocab_size: words are drawn from the ids above 2.
    """

    def __init__(
        self, *, num_image_tokens: int, max_length: int, vocab_size: int, text_only: float = TEXT_ONLY, seed: int = 0
    ):
        self.num_image_tokens, self.max_length, self.vocab_size = num_image_tokens, max_length, vocab_size
        self.period, self.seed = round(1 / text_only) if text_only else 0, seed

    def size(self, i: int) -> tuple[int, int]:
        """The number of text tokens and of images of a sample."""
        return self._drawn(np.random.default_rng([self.seed, i]), i)

    def _drawn(self, random: np.random.Generator, i: int) -> tuple[int, int]:
        images = 0 if self.period and i % self.period == self.period - 1 else 1
        room = self.max_length - images * self.num_image_tokens - 1
        return int(np.clip(random.lognormal(np.log(MEDIAN), SIGMA), SHORTEST, room)), images

    def __getitem__(self, i: int) -> dict:
        random = np.random.default_rng([self.seed, i])
        length, num_images = self._drawn(random, i)
        words = random.integers(3, self.vocab_size, length).tolist()
        learned = round(ANSWERS * length)
        head = [1] + [IMAGE_TOKEN] * num_images
        return dict(
            input_ids=head + words,
            labels=[IGNORE] * (len(head) + length - learned) + words[length - learned :],
            images=[self.image(i)] * num_images,
            image_keys=[str(i)] * num_images,
            sample_id=f"synthetic:{i}",
        )

    def image(self, i: int) -> Image.Image:
        """An image of coarse noise. It takes as long to resize as a photograph."""
        cells = np.random.default_rng([self.seed, i, 1]).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return Image.fromarray(cells).resize(IMAGE_SIZE, Image.Resampling.BILINEAR)
