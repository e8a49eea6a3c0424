"""Hooks of the training loop."""

from asvr.engine.hooks.averages import AverageHook
from asvr.engine.hooks.checkpoint import CheckpointHook
from asvr.engine.hooks.profile import TraceHook
from asvr.engine.hooks.progress import ProgressHook
from asvr.engine.hooks.signals import SignalHook
from asvr.engine.hooks.skips import SkipHook
from asvr.engine.hooks.validation import ValidationHook
from asvr.engine.hooks.visualizer import VisualizerHook

__all__ = [
    "AverageHook",
    "CheckpointHook",
    "ProgressHook",
    "SignalHook",
    "SkipHook",
    "TraceHook",
    "ValidationHook",
    "VisualizerHook",
]
