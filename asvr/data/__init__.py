"""Data: it turns records and images into a `Batch`."""

from asvr.data.easy_vqa import EasyVQA
from asvr.data.hf_dataset import HFDataset
from asvr.data.image_folder import ImageFolder
from asvr.data.llava import LlavaDataset
from asvr.data.mixture import Mixture
from asvr.data.parquet import ParquetDataset
from asvr.data.scenes import Scenes
from asvr.data.tar import TarDataset

__all__ = ["EasyVQA", "HFDataset", "ImageFolder", "LlavaDataset", "Mixture", "ParquetDataset", "Scenes", "TarDataset"]
