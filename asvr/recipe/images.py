"""The images of a run's data sets, which caches are computed from."""

from contextlib import suppress

from asvr.data.image_sources import has_file
from asvr.data.refusals import Refused
from asvr.recipe.build import dataset_configs
from asvr.recipe.config import distinct
from asvr.recipe.recipe import Recipe
from asvr.registry import DATASETS


def images_of_stages(recipe: Recipe) -> tuple[list[str], dict]:
    """The keys of all stages' training images, and all images (key -> file), with those of questions."""
    training, asked = [], []
    for stage in recipe.stages.values():
        configs = dataset_configs(stage)
        training.append(configs.pop("data.train"))
        asked += configs.values()
    found = _images(training)
    return list(found), found | _images([config for config in asked if config not in training])


def record_of_image(recipe: Recipe, message: str) -> str | None:
    """Where the first record stands whose image file a message names. None: no data set knows."""
    configs = [config for stage in recipe.stages.values() for config in dataset_configs(stage).values()]
    for dataset in map(DATASETS.build, distinct(configs)):
        for i in range(len(dataset) if hasattr(dataset, "stored_images") else 0):
            with suppress(Refused):  # it has no images to look at
                if any(str(source) in message for _, source in dataset.stored_images(i) if has_file(source)):
                    return dataset.place(i)
    return None


def _images(configs: list) -> dict:
    return {key: source for config in distinct(configs) for key, source in DATASETS.build(config).images()}
