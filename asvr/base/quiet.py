"""Silencing the warnings of transformers."""

from contextlib import contextmanager

from transformers.utils import logging as hf_logging


@contextmanager
def without_warnings():
    """Inside the block, transformers does not warn. It warns about unneeded keys and about a ``model_type`` of another
    program; everything important is an error here."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
