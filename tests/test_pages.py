"""The pages beside the code: their links lead somewhere, what they name exists, their tables are the product's."""

import re
from collections import Counter
from typing import Final, get_args

import pytest
from msgspec import toml
from starlette.routing import Route

from schemas.origin import USER_PLACES
from schemas.outcome import ENDED, Reason, Status
from service.cli import COMMANDS
from service.core.roles import as_owner
from service.core.servers import connect
from service.core.settings import Settings
from service.http.app import create_app
from tests.faults.matrix import MATRIX
from tests.made_pages import MADE, made
from tests.pages import FENCE, HEADING, LINK, PAGES, anchors, files, prose, rows
from tests.pictures import BYTES_MAX, FOLDER, PICTURES
from tests.processes import ROOT

LINES_MAX: Final = 160
TARGETS: Final = (".github/CONTRIBUTING.md", "tests/README.md", "deploy/operations.md")
NAMED: Final = re.compile(r"`([\w.][\w./-]*(?:/|\.(?:py|pyi|md|toml|sql|sh|lua|lock|example|yaml|css|png|svg)))[`:]")
# What a reader makes.
OTHERS: Final = {"v2.md", "tests/mine/"}


def test_the_first_page_is_short() -> None:
    assert PAGES["README.md"].count("\n") <= LINES_MAX


def test_no_page_stands_among_a_persons_files() -> None:
    """The loader of prompts reads every .md below prompts/, and `callboard up` starts again when one there changes."""
    assert [page for page in PAGES if page.startswith(USER_PLACES)] == []
    assert [each for each in (ROOT / "prompts").rglob("*.md") if not re.fullmatch(r"v\d+\.md", each.name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for path, _, anchor in (each.partition("#") for each in LINK.findall(prose(PAGES[page]))):
        if "://" in path:
            continue
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), (page, path)
        if anchor:
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), (page, path, anchor)


@pytest.mark.parametrize("page", PAGES)
def test_no_two_headings_of_a_page_are_the_same(page: str) -> None:
    """A link to the second would lead to the first."""
    times = Counter(HEADING.findall(prose(PAGES[page])))
    assert [heading for heading, count in times.items() if count > 1] == []


def test_every_page_is_reached_from_the_first() -> None:
    reached, waiting = set[str](), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in PAGES and page not in reached:
            reached.add(page)
            for each in LINK.findall(prose(PAGES[page])):
                path = ((ROOT / page).parent / each.partition("#")[0]).resolve()
                if "://" not in each and path.is_relative_to(ROOT):
                    waiting.append(path.relative_to(ROOT).as_posix())
    assert reached == PAGES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_named_exists(page: str) -> None:
    """Each is written from the root of the tree, on every page, so that whoever moves a file finds its name."""
    printed = {name for text in PAGES.values() for name in files(text)}
    named = set(NAMED.findall(prose(PAGES[page]))) - printed - OTHERS
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_what_programs_and_settings_refer_to_is_there() -> None:
    """A sentence of the product names a page of ours, and often a heading there: `deploy/README.md, Roles`."""
    python = [file for folder in ("schemas", "service", "workers") for file in (ROOT / folder).rglob("*.py")]
    others = [file for file in (ROOT / "deploy").rglob("*") if file.suffix in (".yaml", ".example", ".sh")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in [*python, *others, ROOT / "Caddyfile"])
    named = set(re.findall(r"((?:[\w-]+/)*README\.md|deploy/[\w-]+\.md)(?:, \"?([A-Z][\w ]*\w))?", text))
    assert ("deploy/README.md", "Roles") in named
    for path, heading in named:
        assert path in PAGES, path
        assert not heading or heading in HEADING.findall(prose(PAGES[path])), (path, heading)


def test_pictures_are_named_and_small() -> None:
    """None is too large to load, and none is left over."""
    named = {
        ((ROOT / page).parent / path).resolve()
        for page, text in PAGES.items()
        for path in re.findall(r'(?:!\[[^\]]*\]\(|src="|srcset=")([^)"]+)', prose(text))
    }
    assert named == {FOLDER / name for name in PICTURES} == set(FOLDER.iterdir())
    for picture in named:
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG"), picture
        assert len(content) <= BYTES_MAX, picture


@pytest.mark.parametrize("page", MADE)
def test_a_page_made_from_the_code_is_current(page: str) -> None:
    assert PAGES[page] == made(page), "run `make pages`"


def test_what_it_survives_is_the_whole_matrix_without_a_loss() -> None:
    told = list(rows("tests/faults/RESULTS.md", "fault"))
    assert [row[0] for row in told] == [f"{number} · {what}" for number, what in MATRIX.items()]
    assert {(row[2], row[3]) for row in told} == {("0", "0")}


def test_the_make_targets_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {name for text in PAGES.values() for name in re.findall(r"`make ([a-z-]+)", text)}
    assert named <= targets
    told = [row[0].strip("`") for page in TARGETS for row in rows(page, "make")]
    assert sorted(told) == sorted(f"make {name}" for name in targets - {"help", "venv"})


def test_the_programs_are_commands() -> None:
    for row in rows("service/cli/README.md", "program"):
        assert row[0].strip("`").split()[1] in {entry.name for entry in COMMANDS}


def test_the_http_table_is_what_is_routed(settings: Settings) -> None:
    routed = {
        f"{method} {re.sub(r':[a-z]+}', '}', route.path)}"
        for route in create_app(settings).routes
        if isinstance(route, Route) and not route.path.startswith("/ui") and "asset" not in route.name
        for method in (route.methods or set()) - {"HEAD"}
        if route.path == "/" or not route.path.endswith("/")
    }
    assert {row[0].strip("`") for row in rows("service/http/README.md", "HTTP")} == routed


def test_the_diagram_has_each_status_and_each_reason() -> None:
    (drawn,) = [code for language, code in FENCE.findall(PAGES["workers/engine/README.md"]) if language == "mermaid"]
    moves = re.findall(r"^ +(\S+) --> (\S+?)(?:: (.*))?$", drawn, re.MULTILINE)
    assert {state for here, there, _ in moves for state in (here, there)} - {"[*]"} == {*get_args(Status)} - {"waiting"}
    assert {here for here, there, _ in moves if there == "[*]"} == set(ENDED)
    reasons = [reason for _, there, why in moves if there == "dead" for reason in why.split(", ")]
    assert set(reasons) == {*get_args(Reason)}


async def test_the_tables_are_those_of_the_database(settings: Settings) -> None:
    connection = await connect(as_owner(settings), "test")
    try:
        there = await connection.fetch(
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
        )
    finally:
        await connection.close()
    assert sorted(row[0].strip("`") for row in rows("sql/README.md", "table")) == sorted(row[0] for row in there)


def test_toml_that_is_shown_can_be_read() -> None:
    shown = [code for text in PAGES.values() for language, code in FENCE.findall(text) if language == "toml"]
    assert [toml.decode(each) for each in shown]
