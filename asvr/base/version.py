"""The version of this library, for modules that must not import the package, which knows all layers above them."""

import sys


def asvr_version() -> str:
    """Of a clone that is not installed too."""
    return sys.modules["asvr"].__version__
