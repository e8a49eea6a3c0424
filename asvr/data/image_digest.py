"""A digest of some images of a dataset. It shows whether the images have changed, wherever the files are.

The number of files has a limit, so that millions of records take seconds. A dataset with fewer records and images is
compared completely.
"""

import hashlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from asvr.data.image_sources import Source, has_file
from asvr.data.images import check_file
from asvr.data.refusals import Refused

RECORDS = 2000  # that are read for a dataset
IMAGES = 1000  # that are read for a dataset, or for a whole mixture
LEAST = 100  # images for each source of a mixture
HEAD = 1 << 20  # bytes that are read from a file; nearly all files are smaller
READERS = 8  # threads

Sample = list[tuple[str, Source | Refused]]  # name in its record, and the source or the reason why there is none


def sample_images(length: int, limit: int, images_of: Callable[[int], Sample]) -> Sample:
    """Images of random records, the same at every call. images_of: returns the images of a record."""
    found: dict[str, Source | Refused] = {}
    for i in random.Random(0).sample(range(length), min(length, RECORDS)):
        if len(found) >= limit:
            break
        for name, source in images_of(i):
            found.setdefault(name, source)
    return list(found.items())[:limit]


def image_digest(dataset) -> str | None:
    """SHA-256 (16 hex digits) of names, sizes and content of some images of a dataset.

    None if the dataset would have to generate the images first."""
    contents = _contents(dataset)
    if contents is None:
        return None
    return hashlib.sha256(
        "".join(f"{name}\0{content}\0" for name, content, _ in contents).encode(errors="replace")
    ).hexdigest()[:16]


def first_refused(dataset) -> str | None:
    """The error of the first of these images that cannot be read, if there is one."""
    return next((why for _, _, why in _contents(dataset) or [] if why is not None), None)


def _contents(dataset) -> list[tuple[str, str, str | None]] | None:
    """Name, digest of the content and error of some images."""
    if not hasattr(dataset, "some_images"):  # a dataset of the user's own
        return None
    try:
        sample = dataset.some_images(IMAGES)
    except NotImplementedError:  # a dataset that makes its items itself
        return None
    if any(isinstance(source, Image.Image) for _, source in sample):
        return None
    with ThreadPoolExecutor(READERS) as readers:
        return [(name, *content) for (name, _), content in zip(sample, readers.map(_content, sample), strict=True)]


def _content(one: tuple[str, Source | Refused]) -> tuple[str, str | None]:
    _, source = one
    try:
        if isinstance(source, Refused):
            raise source
        if not has_file(source):
            return source.sha256(), None
        check_file(source)
        with open(source, "rb", buffering=0) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return f"{size} {hashlib.sha256(file.read(HEAD)).hexdigest()}", None
    except Refused as error:
        return error.reason, str(error)
    except OSError as error:
        return "unreadable", f"the image {source} cannot be read: {error.strerror}"
