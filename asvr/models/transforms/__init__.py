"""Model transforms: changes to a model after its construction, in the order of ``model_transforms``."""

from asvr.models.transforms.apply import (
    after_step,
    apply_transforms,
    before_sharding,
    build_transform,
    merge_transforms,
    require_device,
    require_merge,
    require_parallel,
    transform_and_train,
    without_transforms,
)
from asvr.models.transforms.float8 import Float8
from asvr.models.transforms.lora import Lora
from asvr.models.transforms.qlora import QLora

__all__ = [
    "Float8",
    "Lora",
    "QLora",
    "after_step",
    "apply_transforms",
    "before_sharding",
    "build_transform",
    "merge_transforms",
    "require_device",
    "require_merge",
    "require_parallel",
    "transform_and_train",
    "without_transforms",
]
