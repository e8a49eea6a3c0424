"""Functions of the tasks beside this file."""


def about_one_picture(dataset):
    """The questions of SEED-Bench that are about one image."""
    return dataset.select([i for i, kind in enumerate(dataset["data_type"]) if kind == "image"])
