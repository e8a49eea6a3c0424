"""docs/zoo.json has every recipe, with the sizes that are counted today. The page is checked with the others."""

import json

import pytest
from _pages.zoo import GROUPS, NUMBERS, SAMPLE, size_key, trained_recipes

from asvr.base.recipes import list_recipes
from asvr.profiling.sizes import recipe_sizes

SIZES = json.loads(NUMBERS.read_text(encoding="utf-8"))


def test_every_recipe_is_in_the_zoo_as_it_is_today():
    keys = {name: size_key(recipe) for name, recipe in trained_recipes().items()}
    changed = [name for name, key in keys.items() if SIZES.get(name, {}).get("key") != key]
    assert changed == [] and SIZES.keys() == keys.keys(), "run python docs/generate.py zoo.json zoo.md"


def test_the_page_has_every_recipe():
    assert {name.rpartition("/")[0] for name in trained_recipes()} == set(GROUPS)
    page = NUMBERS.with_name("zoo.md").read_text(encoding="utf-8")
    assert [recipe.name for recipe in list_recipes() if f"| [{recipe.name}](" not in page] == []


@pytest.mark.parametrize("name", ["asvr_mini", "examples/lora"])
def test_sizes_are_those_of_today(name):
    counted = dict(key=SIZES[name]["key"]) | recipe_sizes(trained_recipes()[name], SAMPLE)
    assert counted.keys() == SIZES[name].keys() and counted["stages"].keys() == SIZES[name]["stages"].keys()
    assert (counted["parameters"], counted["tokens"]) == (SIZES[name]["parameters"], SIZES[name]["tokens"])
    for stage, sizes in counted["stages"].items():
        assert sizes == pytest.approx(SIZES[name]["stages"][stage], rel=0.02)
