"""The data sets at the edge."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def edges(tmp_path_factory) -> Path:
    """The config of `edge_helpers`, beside its files."""
    from edge_helpers import fit_tokenizer, make_edges

    folder = tmp_path_factory.mktemp("edges")
    config = make_edges(folder)
    fit_tokenizer(config, folder)
    return config
