"""transformers without its warnings."""

from contextlib import contextmanager

from transformers.utils import logging as hf_logging


@contextmanager
def without_warnings():
    """transformers warns of keys that nobody needs, and of a ``model_type`` that is another program's; what matters is
    an error here."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
