"""`callboard new`: what it writes is clean and fits together; nothing is written over. tests/test_readme.py runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import command_line
from service.cli import new as module
from tests.processes import ROOT, mypy_cache_in, product_in

LONG = "a" * 28
LONG_TYPE = f"{'a' * 20}.{'b' * 19}"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files go; the events that are known are those of the project."""
    monkeypatch.setattr(module, "ROOT", product_in(tmp_path))
    return tmp_path


def write(*arguments: str) -> Result:
    return CliRunner().invoke(command_line({}), ["new", *arguments])


def wrote(*arguments: str) -> list[str]:
    """What it says it wrote, and the rest of what it says."""
    done = write(*arguments)
    assert done.exit_code == 0, done.output
    first, *rest = done.output.splitlines()
    return [first.removeprefix("wrote "), *rest]


def check(copy: Path, *command: str) -> str:
    own = {"PATH": os.environ["PATH"], "CALLBOARD_SIMULATE": "on"}
    done = subprocess.run([sys.executable, *command], cwd=copy, env=own, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_written_is_clean_and_boots(copy: Path) -> None:
    files = [
        *wrote("event", "sent.back")[:1],
        *wrote("event", LONG_TYPE)[:1],
        *wrote("prompt", "returns/judge")[:1],
        *wrote("prompt", f"{LONG}/{LONG}")[:1],
        *wrote("node", "returns/judge", "--on", "ticket.opened")[:1],
        *wrote("node", "alone", "--on", "ticket.opened")[:1],
        *wrote("node", f"{LONG}/{LONG}", "--on", "message.labelled")[:1],
    ]
    with (copy / "workers/nodes/returns.py").open("a") as nodes:
        nodes.write("\n\nasync def tell(answer: Answer) -> Answer:\n    return answer\n")
    files += [
        *wrote("pipeline", "returns", "--on", "ticket.opened")[:1],
        *wrote("pipeline", LONG, "--on", "message.labelled")[:1],
    ]
    assert all((copy / file).is_file() for file in files)
    code = [file for file in files if file.endswith(".py")]
    config = ("--config", str(ROOT / "pyproject.toml"))
    check(copy, "-m", "ruff", "check", *config, *code)
    check(copy, "-m", "ruff", "format", "--check", *config, *code)
    mypy_cache_in(copy)
    check(copy, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *code)
    told = check(copy, "-c", BOOT)
    assert told.split() == ["judge", "tell", "True"]


BOOT = f"""
import prompts, schemas.events
from pathlib import Path
from schemas.catalog import discover
from workers.compiler.graph import edges
from workers.compiler.wiring import compiled
from workers.pipelines.returns import returns
catalog = discover(schemas.events)
nodes, arrows = edges(compiled(returns))
print(*(name for name, _ in nodes))
names = prompts.load(Path(prompts.__file__).parent).versions
print("sent.back" in catalog and "{LONG_TYPE}" in catalog and "returns/judge" in names)
"""


def test_the_next_version_of_a_prompt_is_a_copy_of_the_last(copy: Path) -> None:
    assert wrote("prompt", "returns/judge")[0] == "prompts/returns/judge/v1.md"
    first = copy / "prompts/returns/judge/v1.md"
    first.write_text(first.read_text().replace("one sentence", "two sentences"))
    place, told = wrote("prompt", "returns/judge")
    assert (copy / place).read_text() == first.read_text()
    assert place.endswith("/v2.md")
    assert 'v1 is "returns/judge@1"' in told


def test_what_is_missing_is_said(copy: Path) -> None:
    assert (
        "asks no model: there is no prompt returns/judge" in wrote("node", "returns/judge", "--on", "ticket.opened")[1]
    )
    assert "there is no node in workers/nodes/other.py" in wrote("pipeline", "other", "--on", "ticket.opened")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["event", "Refund.Asked"], 2, '"Refund.Asked" is no type'),
        (["event", "a..b"], 2, '"a..b" is no type'),
        (["event", f"{LONG_TYPE}b"], 2, "40 letters at most"),
        (["event", "run"], 2, '"Run" means something else already'),
        (["event", "class"], 2, '"class" means something else already'),
        (["event", "ticket.opened"], 1, 'schemas.events.tickets has "ticket.opened" already'),
        (["prompt", "Judge"], 2, '"Judge" is no name'),
        (["prompt", "../judge"], 2, "is no name"),
        (["node", "a/b/c", "--on", "ticket.opened"], 2, "is no name"),
        (["node", f"{LONG}a", "--on", "ticket.opened"], 2, "28 at most"),
        (["node", "judge", "--on", "no.such"], 2, 'there is no event "no.such" ('),
        (["node", "judge"], 2, "Missing option '--on'"),
        (["node", "tickets/draft", "--on", "ticket.opened"], 1, "wants ticket, triage, language, similar"),
        (["node", "triage/judge", "--on", "ticket.opened"], 1, "workers/nodes/triage.py is there already"),
        (["pipeline", "a/b", "--on", "ticket.opened"], 2, "a pipeline has none"),
        (["pipeline", "support", "--on", "ticket.opened"], 1, "workers/pipelines/support.py is there already"),
    ],
)
def test_a_refusal_is_one_sentence_and_writes_nothing(
    copy: Path, arguments: list[str], status: int, sentence: str
) -> None:
    before = {file: file.read_bytes() for file in copy.rglob("*.*")}
    done = write(*arguments)
    assert (done.exit_code, "Traceback" in done.output) == (status, False)
    assert sentence in done.output
    assert done.output.splitlines()[-1].startswith("Error: ")
    assert {file: file.read_bytes() for file in copy.rglob("*.*")} == before
