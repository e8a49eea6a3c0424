"""Whether the images of a dataset are those of another time, wherever they lie: a digest of some of them.

The number of files that are looked at has a limit, so that millions of records take seconds. A dataset with fewer
records and images than that is compared as a whole.
"""

import hashlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from asvr.data.image_sources import Source, has_file
from asvr.data.images import check_file
from asvr.data.refusals import Refused

RECORDS = 2000  # that are read, of a dataset
IMAGES = 1000  # that are looked at, of a dataset or of all parts of a mixture
LEAST = 100  # of each part
HEAD = 1 << 20  # bytes that are read of a file: nearly always all of it
READERS = 8  # threads

Sample = list[tuple[str, Source | Refused]]  # name in its record, and where the image is or why it is nowhere


def sample_images(length: int, limit: int, images_of: Callable[[int], Sample]) -> Sample:
    """Of records that chance chooses, the same at every call. images_of: of a record."""
    found: dict[str, Source | Refused] = {}
    for i in random.Random(0).sample(range(length), min(length, RECORDS)):
        if len(found) >= limit:
            break
        for name, source in images_of(i):
            found.setdefault(name, source)
    return list(found.items())[:limit]


def image_digest(dataset) -> str | None:
    """SHA-256 (16 hex digits) of names, sizes and content of some images of a dataset; None where it cannot tell what
    they are without making them."""
    contents = _contents(dataset)
    if contents is None:
        return None
    return hashlib.sha256(
        "".join(f"{name}\0{told}\0" for name, told, _ in contents).encode(errors="replace")
    ).hexdigest()[:16]


def first_refused(dataset) -> str | None:
    """What is wrong with the first of these images that is no file, if there is one."""
    return next((why for _, _, why in _contents(dataset) or [] if why is not None), None)


def _contents(dataset) -> list[tuple[str, str, str | None]] | None:
    """Name, content and what is wrong of some images."""
    if not hasattr(dataset, "some_images"):  # a user's own
        return None
    try:
        sample = dataset.some_images(IMAGES)
    except NotImplementedError:  # one that makes its items itself
        return None
    if any(isinstance(source, Image.Image) for _, source in sample):
        return None
    with ThreadPoolExecutor(READERS) as readers:
        return [(name, *told) for (name, _), told in zip(sample, readers.map(_content, sample), strict=True)]


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
