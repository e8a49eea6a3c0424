"""Data: from records and pictures to a `Batch`."""

from asvr.data.easy_vqa import EasyVQA
from asvr.data.llava import LlavaDataset

__all__ = ["EasyVQA", "LlavaDataset"]
