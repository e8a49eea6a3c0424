"""Generated scenes of known objects, with exact captions, questions and answers."""

from asvr.data.scenes.dataset import Scenes

__all__ = ["Scenes"]
