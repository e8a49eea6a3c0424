"""A dataset of all images in a folder."""

import os
from pathlib import Path

from asvr.data.records import ConversationDataset
from asvr.registry import DATASETS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@DATASETS.register_module()
class ImageFolder(ConversationDataset):
    """All images below a folder, without text.

    Each file (png, jpg, jpeg, webp, bmp) is a record without a conversation. Records are sorted by path.

    root: the folder. limit: use only the first images.

    For the other arguments see `asvr.data.records.ConversationDataset`.

    Raises: ValueError if the folder is missing or has no images.
    """

    def __init__(self, *, root: str, limit: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if limit is not None and limit < 1:
            raise ValueError(f"ImageFolder: limit={limit}: expected at least 1, or None for all images")
        self.source, self.root = str(root), Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise ValueError(f"ImageFolder: root={root!r} is not a folder: expected a folder of images")
        found = (os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        paths = sorted(path for path in found if path.lower().endswith(SUFFIXES))[:limit]
        if not paths:
            raise ValueError(f"ImageFolder: root={root!r} has no images: expected some of {', '.join(SUFFIXES)}")
        self.names = [os.path.relpath(path, self.root) for path in paths]

    def __len__(self) -> int:
        return len(self.names)

    def record(self, i: int) -> dict:
        return dict(image=self.names[i])

    def image(self, name: str) -> tuple[str, Path]:
        path = self.root / name
        return str(path), path
