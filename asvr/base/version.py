"""The version of this library, for modules that must not import the package itself."""

import sys


def asvr_version() -> str:
    """The version, also in a clone that is not installed."""
    return sys.modules["asvr"].__version__
