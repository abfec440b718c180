"""deploy/ASVS.md has each point of OWASP ASVS 4.0.3's level 2 once, and the tests that it names."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
ROWS: Final = [
    line.split(" | ")
    for line in (ROOT / "deploy" / "ASVS.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d", line)
]
# The 259 points that the standard's own table (docs_en/…-4.0.3-en.csv) marks for level 2.
LEVEL_2: Final = """
1.1.1-7 1.2.1-4 1.4.1 1.4.4-5 1.5.1-4 1.6.1-4 1.7.1-2 1.8.1-2 1.9.1-2 1.10.1 1.11.1-2 1.12.2 1.14.1-6 2.1.1-12 2.2.1-3
2.3.1-3 2.4.1-5 2.5.1-7 2.6.1-3 2.7.1-6 2.8.1-7 2.9.1-3 2.10.1-4 3.1.1 3.2.1-4 3.3.1-4 3.4.1-5 3.5.1-3 3.7.1 4.1.1-3
4.1.5 4.2.1-2 4.3.1-3 5.1.1-5 5.2.1-8 5.3.1-10 5.4.1-3 5.5.1-4 6.1.1-3 6.2.1-6 6.3.1-2 6.4.1-2 7.1.1-4 7.2.1-2 7.3.1
7.3.3-4 7.4.1-3 8.1.1-4 8.2.1-3 8.3.1-8 9.1.1-3 9.2.1-4 10.2.1-2 10.3.1-3 11.1.1-8 12.1.1-3 12.2.1 12.3.1-6 12.4.1-2
12.5.1-2 12.6.1 13.1.1 13.1.3-5 13.2.1-3 13.2.5-6 13.3.1-2 13.4.1-2 14.1.1-4 14.2.1-6 14.3.2-3 14.4.1-7 14.5.1-4
"""


def points(text: str) -> Iterator[str]:
    """`1.4.4-5` are 1.4.4 and 1.4.5."""
    for section, first, last in re.findall(r"(\d+\.\d+)\.(\d+)(?:-(\d+))?", text):
        yield from (f"{section}.{n}" for n in range(int(first), int(last or first) + 1))


def test_each_point_stands_there_once() -> None:
    counts = Counter(point for row in ROWS for point in points(row[0]))
    assert set(counts) == set(points(LEVEL_2))
    assert [point for point, times in counts.items() if times > 1] == []
    assert len(counts) == 259


def test_each_verdict_says_why() -> None:
    verdicts = [row for row in ROWS if len(row) == 4]
    assert {row[2] for row in verdicts} == {"yes", "part", "no"}
    assert not [row for row in verdicts if len(row[3].strip(" |")) < len("as 6.1.1")]


def test_each_test_that_is_named_exists() -> None:
    named = set(re.findall(r"(test_\w+\.py)::(test_\w+)", (ROOT / "deploy" / "ASVS.md").read_text(encoding="utf-8")))
    there = {
        (file.name, node.name)
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert named - there == set()
    assert len(named) > 60
