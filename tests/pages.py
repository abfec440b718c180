"""The pages for people, beside the code they speak of: their sections, commands, tables, files and links."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.processes import ROOT

PLACES: Final = (".github", "deploy", "schemas", "service", "sql", "tests", "workers")
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE: Final = re.compile(r"^\*\*`([\w/.]+)`\*\*[^\n]*\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _pages() -> dict[str, str]:
    """Every page by its path; prompts are no pages, and a person's own folders below these may have none of ours."""
    found = [*ROOT.glob("*.md"), *(file for place in PLACES for file in (ROOT / place).rglob("*.md"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in sorted(found)}


PAGES: Final = _pages()


def prose(text: str) -> str:
    """Without what is printed in code blocks."""
    return FENCE.sub("", text)


def sections(page: str) -> dict[str, str]:
    """What stands under each heading of the second level; under "" what stands before the first."""
    first, *others = re.split(r"^## ", PAGES[page], flags=re.MULTILINE)
    return {"": first} | {each.partition("\n")[0]: each for each in others}


def commands(text: str) -> list[str]:
    """The lines of the bash blocks, each with those that it goes on on."""
    blocks = [code for language, code in FENCE.findall(text) if language == "bash"]
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the tables of a page with this first column."""
    found = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)
    assert found, (page, heading)
    for line in "".join(found).splitlines():
        yield [cell.strip() for cell in line.strip("|").split("|")]


def files(text: str) -> dict[str, str]:
    """The files that a text prints whole, each under its path in bold."""
    return dict(FILE.findall(text))


def anchors(page: str) -> set[str]:
    """The headings of a page as GitHub makes addresses of them."""
    headings = HEADING.findall(prose(PAGES[page]))
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def write(folder: Path, printed: dict[str, str]) -> None:
    for name, text in printed.items():
        assert not (folder / name).exists(), name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
