"""The matrix is whole."""

import re
from pathlib import Path

from tests.faults.matrix import MATRIX, row_of


def test_every_row_of_the_matrix_has_a_test_and_every_test_a_row() -> None:
    here = Path(__file__)
    texts = [path.read_text(encoding="utf-8") for path in here.parent.glob("test_*.py") if path != here]
    tests = [name for text in texts for name in re.findall(r"^async def (test_\w+)", text, re.MULTILINE)]
    assert {row_of(name) for name in tests} == MATRIX.keys()
