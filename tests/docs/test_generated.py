"""Pages that are written from the code are those that the code writes today."""

import pytest
from generate import DOCS, PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_up_to_date(page):
    assert (DOCS / page).read_text(encoding="utf-8") == PAGES[page](), "run python docs/generate.py"
