"""docs/zoo.json has every recipe, with the sizes that are counted today. The page is checked with the others."""

import json

import pytest
from _pages.zoo import GROUPS, NUMBERS, SAMPLE, size_key, zoo_page

from asvr.base.recipes import config_file, list_recipes
from asvr.profiling.sizes import recipe_sizes
from asvr.recipe.recipe import load_recipe

SIZES = json.loads(NUMBERS.read_text(encoding="utf-8"))
TRAINED = {recipe.name: recipe.file for recipe in list_recipes() if recipe.command == "train"}


def test_every_recipe_is_in_the_zoo_as_it_is_today():
    changed = [name for name, file in TRAINED.items() if SIZES.get(name, {}).get("key") != size_key(load_recipe(file))]
    assert changed == [] and SIZES.keys() == TRAINED.keys(), "run python docs/generate.py zoo.json zoo.md"


def test_the_page_has_every_recipe():
    assert {name.rpartition("/")[0] for name in TRAINED} == set(GROUPS)
    page = zoo_page()
    assert [recipe.name for recipe in list_recipes() if f"| [{recipe.name}](" not in page] == []


@pytest.mark.parametrize("name", ["asvr_mini", "examples/lora"])
def test_sizes_are_those_of_today(name):
    counted = dict(key=SIZES[name]["key"]) | recipe_sizes(load_recipe(config_file(name)), SAMPLE)
    assert counted.keys() == SIZES[name].keys() and counted["stages"].keys() == SIZES[name]["stages"].keys()
    assert (counted["parameters"], counted["tokens"]) == (SIZES[name]["parameters"], SIZES[name]["tokens"])
    for stage, sizes in counted["stages"].items():
        assert sizes == pytest.approx(SIZES[name]["stages"][stage], rel=0.02)
