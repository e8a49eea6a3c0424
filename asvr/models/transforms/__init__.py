"""Model transforms: changes to a model after its construction, in the order of ``model_transforms``."""

from asvr.models.transforms.apply import (
    apply_transforms,
    build_transform,
    merge_transforms,
    require_device,
    require_merge,
    transform_and_train,
)
from asvr.models.transforms.float8 import Float8
from asvr.models.transforms.lora import Lora
from asvr.models.transforms.qlora import QLora

__all__ = [
    "Float8",
    "Lora",
    "QLora",
    "apply_transforms",
    "build_transform",
    "merge_transforms",
    "require_device",
    "require_merge",
    "transform_and_train",
]
