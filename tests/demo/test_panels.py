"""The page's images: colours where there are values, and words that say the same as the colours."""

import numpy as np
import pytest
from demo_helpers import gradient
from matplotlib import colormaps
from PIL import Image

from asvr.demo.maps import TargetMap, ValueMap
from asvr.demo.panels import DARKEST, MOST_LINES, STRENGTH, attention_panels, decoded_panels, target_panels

NONE = np.nan
SEEN = Image.new("RGB", (40, 20), "black")
BELOW = DARKEST * (1 - STRENGTH)  # of the black image
YELLOW, PURPLE = ([255 * STRENGTH * part + BELOW for part in colormaps["viridis"](end)[:3]] for end in (1.0, 0.0))


def at(image: Image.Image, cell: tuple[int, int]) -> list[int]:
    """The colour in the middle of a cell of 2 x 4."""
    return list(image.getpixel((cell[1] * 10 + 5, cell[0] * 10 + 5)))


def test_codes_have_two_maps_a_depth():
    right = np.array([[NONE, 1, 0, 0], [1, 1, 1, 1]])
    right_RCD, probability_RCD = np.stack([right, 1 - right], -1), np.full((2, 4, 2), 0.25)
    maps = [TargetMap(name="own", right_RCD=right_RCD, probability_RCD=probability_RCD, images=None)]
    first, certain, second, _ = target_panels(SEEN, maps)
    assert first.title == "own codes, depth 1 of 2: right or wrong" and first.ends == ("wrong", "right")
    assert first.caption == "The predicted code is right in 5 of 7 cells."
    assert second.caption == "The predicted code is right in 2 of 7 cells."
    assert certain.caption == "The model gives its code a probability of 25 % on average."
    assert first.alt == f"{first.title}: {first.caption}"
    assert at(first.image, (0, 0)) == [DARKEST] * 3  # nothing is predicted there: the image alone
    for cell, colour in (((0, 1), YELLOW), ((0, 2), PURPLE), ((1, 3), YELLOW)):
        assert at(first.image, cell) == pytest.approx(colour, abs=2)
    assert first.image.getpixel((10, 5)) == (255, 255, 255)  # a line between cells


def test_a_fine_grid_has_no_lines():
    side = MOST_LINES + 1
    (panel,) = target_panels(
        Image.new("RGB", (10 * side,) * 2), [ValueMap(name="t", values_RC=dict(a=np.ones((side,) * 2)))]
    )
    assert panel.image.getcolors() and len(panel.image.getcolors()) == 1


def test_values_of_ones_own_have_their_own_scale():
    values = dict(share=np.full((2, 4), 0.5), nats=np.full((2, 4), 7.0))
    share, nats = target_panels(SEEN, [ValueMap(name="mine", values_RC=values)])
    assert (share.title, share.ends, nats.ends) == ("mine: share", ("0", "1"), ("0", "7"))
    assert at(nats.image, (0, 0)) == pytest.approx(YELLOW, abs=2)


def test_attention_says_how_much_is_on_the_image():
    weights_RC = np.array([[NONE, 0.1, 0, 0], [0, 0, 0, 0.3]])
    seen, attention = attention_panels(SEEN, weights_RC)
    assert seen.image is SEEN and seen.ends is None
    assert attention.caption == "40 % of the attention is on the image, the rest on the text. Most on one cell: 30 %."
    assert attention.ends == ("0 %", "30 %") and at(attention.image, (1, 3)) == pytest.approx(YELLOW, abs=2)


def test_decoded_images_are_the_tokenizers():
    pictures = tuple(gradient(side, side) for side in (4, 5, 6))
    assert tuple(panel.image for panel in decoded_panels(pictures)) == pictures
