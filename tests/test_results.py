"""What a run has measured goes into its page where somebody asks for that, and what people wrote there stays."""

import shutil
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.results import record


@pytest.mark.parametrize("name", ["tests/faults/RESULTS.md", "tests/bench/RESULTS.md"])
def test_a_run_writes_its_numbers_and_nothing_else(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(shutil.copy(ROOT / name, tmp_path))
    before = page.read_text(encoding="utf-8")
    monkeypatch.delenv("RESULTS", raising=False)
    record(page, "| new | 1 |\n")
    assert page.read_text(encoding="utf-8") == before, "nobody asked"
    monkeypatch.setenv("RESULTS", "1")
    record(page, "| new | 1 |\n")
    record(page, "| newer | 2 |\n")
    after = page.read_text(encoding="utf-8")
    assert "\n| newer | 2 |\n" in after
    assert "| new |" not in after
    written = [line for line in after.splitlines() if line not in before.splitlines()]
    assert written == ["| newer | 2 |"]
    assert after.partition("<!--")[0] == before.partition("<!--")[0]
    assert after.rpartition("-->")[2] == before.rpartition("-->")[2]
