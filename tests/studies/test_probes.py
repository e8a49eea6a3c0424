"""Probes find what was planted, find nothing in noise, and never look at the part that tests them."""

import random

import numpy as np
import pytest
import torch

from asvr.data.scenes import Scenes
from asvr.data.scenes.scene import COLORS, LETTERS, PLACES, make_scene, paint
from asvr.data.scenes.sprites import DRAWINGS, groups
from asvr.studies.probe_truth import IMAGE, PROBES, REGIONS, asked_place, coverage, rows_of
from asvr.studies.probes import CHOOSE, FIT, PENALTIES, TEST, fit_probe, parts_of

WIDTH = 12


def planted(values_Q: np.ndarray, *, noise: float = 0.1, seed: int = 0) -> torch.Tensor:
    """States with one direction along which ``values`` lie in order, at any scale and offset."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=generator)
    states = torch.tensor(values_Q, dtype=torch.float32)[:, None] * direction
    return 5 + 100 * (states + noise * torch.randn(len(values_Q), WIDTH, generator=generator))


def drawn(classes: int, rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).integers(classes, size=rows), parts_of(rows)


def test_values_between_two_others_are_read_too():
    class_Q, part_Q = drawn(3)
    states_QH = planted(class_Q)
    assert fit_probe(states_QH, class_Q + 2, part_Q).right_Q.mean() > 0.97
    fit, test = (torch.from_numpy(np.flatnonzero(part_Q == part)) for part in (FIT, TEST))
    inputs = torch.cat([states_QH, torch.ones(300, 1)], 1)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(class_Q), 3).float()
    least_squares = (inputs[test] @ torch.linalg.lstsq(inputs[fit], one_hot[fit]).solution).argmax(1).numpy()
    middle = class_Q[test] == 1
    assert (least_squares[middle] == 1).mean() < 0.7  # why a probe is no regression on one-hot values


@pytest.mark.parametrize("classes", [2, 8])
def test_there_is_nothing_in_noise(classes):
    class_Q, part_Q = drawn(classes, rows=2000)
    states_QH = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(1))
    share = fit_probe(states_QH, class_Q, part_Q).right_Q.mean()
    assert abs(share - 1 / classes) < 4 * np.sqrt(1 / classes * (1 - 1 / classes) / 400)


def test_guessing_takes_the_most_frequent_class_of_the_fit_part():
    part_Q = parts_of(20)
    class_Q = np.array([7] * 8 + [3] * 4 + [3] * 4 + [3, 7, 3, 9])  # 9 is not in the fit part
    found = fit_probe(torch.zeros(20, 2), class_Q, part_Q)
    assert found.guess_Q.tolist() == found.right_Q.tolist() == [False, True, False, False]


def test_the_test_part_decides_nothing():
    class_Q, part_Q = drawn(4)
    states_QH = planted(class_Q, noise=3)
    found, changed = fit_probe(states_QH, class_Q, part_Q), states_QH.clone()
    test = np.flatnonzero(part_Q == TEST)
    changed[test[1::2]] = 1e6
    others_Q = class_Q.copy()
    others_Q[test[1::2]] = 99
    other = fit_probe(changed, others_Q, part_Q)
    assert other.penalty == found.penalty
    np.testing.assert_array_equal(other.right_Q[::2], found.right_Q[::2])
    assert not other.right_Q[1::2].any()


def test_the_choose_part_chooses_the_penalty():
    class_Q, part_Q = drawn(2, rows=60)
    states_QH = torch.cat(
        [planted(class_Q, noise=2), torch.randn(60, 40, generator=torch.Generator().manual_seed(2))], 1
    )
    alone = {penalty: fit_probe(states_QH, class_Q, part_Q, penalties=[penalty]) for penalty in PENALTIES}
    swapped_Q = np.where(part_Q == TEST, CHOOSE, np.where(part_Q == CHOOSE, TEST, part_Q))
    shares = {p: fit_probe(states_QH, class_Q, swapped_Q, penalties=[p]).right_Q.mean() for p in PENALTIES}
    assert len(set(shares.values())) > 1
    best = max(PENALTIES, key=lambda p: (shares[p], p))
    found = fit_probe(states_QH, class_Q, part_Q)
    assert found.penalty == best
    np.testing.assert_array_equal(found.right_Q, alone[best].right_Q)


def test_equal_states_give_equal_results_in_any_dtype_and_with_grad_off():
    class_Q, part_Q = drawn(5)
    states_QH = planted(class_Q, noise=2)
    with torch.no_grad():
        first = fit_probe(states_QH, class_Q, part_Q)
    second = fit_probe(states_QH.double().requires_grad_(), class_Q, part_Q)
    np.testing.assert_array_equal(first.right_Q, second.right_Q)
    assert first.penalty == second.penalty


def test_scenes_are_split():
    assert np.bincount(parts_of(1500)).tolist() == [900, 300, 300] and np.bincount(parts_of(10)).tolist() == [6, 2, 2]
    with pytest.raises(ValueError, match="9 scenes are too few for probes: expected at least 10"):
        parts_of(9)


def test_rows_are_the_truth_of_the_scenes():
    scenes = Scenes(split="test", scenes=40, kinds=[]).scenes
    rows = rows_of(scenes)
    assert list(rows) == list(PROBES) and [len(own) for own in rows.values()] == [1, 1, 1, 1, 4]
    [color], [what], [letter], [count] = (rows[name] for name in ("color", "what", "letter", "count"))
    things = [(i, thing) for i, scene in enumerate(scenes) for thing in scene.things]
    for row, (i, thing) in enumerate(things):
        assert (color.scene_Q[row], color.region_Q[row]) == (what.scene_Q[row], what.region_Q[row]) == (i, thing.place)
        assert list(COLORS)[color.class_Q[row]] == thing.color
    assert len({(thing.name, number) for (_, thing), number in zip(things, what.class_Q, strict=True)}) == len(
        {thing.name for _, thing in things}
    )
    words = ["".join(LETTERS[number] for number in letter.class_Q[letter.scene_Q == i]) for i in range(40)]
    assert words == [scene.word for scene in scenes]
    assert [REGIONS[region] for region in letter.region_Q[:2]] == ["left letter", "right letter"]
    assert count.class_Q.tolist() == [len(scene.things) for scene in scenes] and set(count.region_Q) == {IMAGE}
    for place, own in enumerate(rows["place"]):
        assert own.class_Q.tolist() == [any(t.place == place for t in scene.things) for scene in scenes]


def test_regions_are_where_the_scene_is_painted():
    """A cell for each pixel."""
    covered = coverage((128, 128)).reshape(len(REGIONS), 128, 128) > 0.99
    assert covered[IMAGE].all()
    empty = ~covered[:IMAGE].any(0)
    for number in range(12):
        scene = make_scene(random.Random(number), list(groups())[::50], DRAWINGS[-1:])
        pixels = np.asarray(paint(scene, 128)).astype(int)
        assert (pixels[empty].min(-1) >= 230).mean() > 0.75  # the background, and the white plate of the letters
        for thing in scene.things:
            on_plate = (abs(pixels - COLORS[thing.color]).max(-1) <= 2)[covered[thing.place]]
            assert on_plate.mean() > (0.7 if thing.size == "small" else 0.35)
        for place in set(range(4)) - {thing.place for thing in scene.things}:
            assert (pixels[covered[place]].min(-1) >= 230).mean() > 0.9
        for letter in (4, 5):
            own = pixels[covered[letter]]
            assert (own.max(-1) - own.min(-1) <= 2).mean() > 0.8 and (own.max(-1) < 128).mean() > 0.15


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (24, 24), (3, 6)])
def test_every_region_has_a_token_on_any_grid(grid):
    covered_GN = coverage(grid)
    assert covered_GN.shape == (len(REGIONS), grid[0] * grid[1]) and (covered_GN.sum(1) > 0).all()
    area = covered_GN.mean(1)
    assert area[:4] == pytest.approx([np.pi * 0.23**2] * 4, rel=0.25) and area[IMAGE] == 1
    if grid == (2, 2):
        assert (covered_GN[:4] > 0).astype(int).tolist() == np.eye(4, dtype=int).tolist()


def test_the_place_of_a_question():
    asked = [f"what color is the plate at the {place}?" for place in PLACES]
    assert [asked_place(question) for question in asked] == [0, 1, 2, 3]
    assert asked_place("which letters are in the middle?") is None
