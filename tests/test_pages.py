"""The pages beside the code: what is made from the code is current."""

import pytest

from tests.made_pages import MADE, made
from tests.pages import PAGES


@pytest.mark.parametrize("page", MADE)
def test_a_page_made_from_the_code_is_current(page: str) -> None:
    assert PAGES[page] == made(page), "run `make pages`"
