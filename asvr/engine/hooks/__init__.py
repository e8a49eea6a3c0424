"""Hooks of the training loop."""

from asvr.engine.hooks.checkpoint import CheckpointHook
from asvr.engine.hooks.progress import ProgressHook

__all__ = ["CheckpointHook", "ProgressHook"]
