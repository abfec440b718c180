"""The command line, as far as it goes without a service: help, exit codes, reading, counting, plain output."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.cli import COMMANDS, command_line
from service.cli.api_client import EventView, printable, refusal
from service.cli.catalog import pipelines
from service.cli.demo import demo, last_line, price_sentence, rows, took_ms
from service.cli.feed import Fed, at_most
from service.cli.new import new
from service.cli.send import event_body, read_data, send
from service.cli.show import present, show

ROOT = Path(__file__).parents[3]
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there

EVENT = {
    "event_id": "0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44",
    "specversion": "1.0",
    "id": "17",
    "source": "/demo/x",
    "type": "ticket.opened",
    "data": {},
    "status": "succeeded",
    "attempts": 1,
    "attempts_max": 5,
    "run": 1,
    "accepted_at": "2026-03-01T12:00:00.000Z",
    "finished_at": "2026-03-01T12:00:00.250Z",
    "result": {"intent": "thanks", "route": "close", "simulated": ["language"]},
    "error": None,
    "cost_usd": 0.001,
    "calls": 2,
    "timeline": [
        {"seq": 1, "at": "2026-03-01T12:00:00Z", "what": "accepted"},
        {
            "seq": 2,
            "at": "2026-03-01T12:00:00.1Z",
            "what": "step",
            "step": "classify\u001b[31m",
            "attempt": 1,
            "ms": 41.25,
        },
    ],
}


def callboard(
    *arguments: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    program = "from service.cli import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environ or {}, input=stdin, capture_output=True, check=False, timeout=30
    )


def view(**changes: object) -> EventView:
    return msgspec.convert({**EVENT, **changes}, EventView)


def test_help_names_every_command_and_imports_none() -> None:
    program = "import sys; from service.cli import main\nsys.argv = ['callboard', '--help']\n"
    program += "try: main()\nexcept SystemExit: pass\n"
    check = "print([name for name in sys.modules if name in ('httpx', 'rich', 'asyncpg', 'starlette', 'arq')])"
    done = subprocess.run(
        [sys.executable, "-c", program + check], cwd=ROOT, capture_output=True, check=True, timeout=30
    )
    *told, imported = done.stdout.decode().splitlines()
    assert imported == "[]"
    assert {line.split()[0] for line in told if line.strip()} >= {entry.name for entry in COMMANDS}


@pytest.mark.parametrize("command", [send, show, demo, new, pipelines])
def test_each_command_has_an_example(command: click.Command) -> None:
    output = CliRunner().invoke(command_line({}), [str(command.name), "--help"]).output
    assert f"callboard {command.name}" in output[output.index("Example") :]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["send", "a.b"], "--data"),
        (["send", "a.b", "--data", "{"], "not JSON"),
        (["send", "a.b", "--data", "@/no/such/file"], "/no/such/file can't be read"),
        (["send", "a.b", "--data", "[" * 5000], "not JSON"),
        (["show", "seventeen"], "not a valid UUID"),
        (["show", EVENT["event_id"], "--url", "callboard"], "not an http:// or https:// address"),
        (["demo", "/no/such/file"], "does not exist"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], sentence: str) -> None:
    done = callboard(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert sentence in done.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [["send", "a.b", "--data", "{}"], ["show", EVENT["event_id"]], ["demo", "--url", NOBODY], ["pipelines"]],
)
def test_no_service_exits_with_3_and_says_what_to_do(arguments: list[str]) -> None:
    done = callboard(*arguments, environ={"CALLBOARD_URL": NOBODY})
    assert (done.returncode, done.stdout) == (3, b"")
    assert f"No Callboard answers at {NOBODY}" in done.stderr.decode()
    assert "callboard up" in done.stderr.decode()


def test_an_unknown_setting_exits_with_2() -> None:
    done = callboard("show", str(EVENT["event_id"]), environ={"CALLBOARD_UR": NOBODY})
    assert done.returncode == 2
    assert "CALLBOARD_UR is not a setting" in done.stderr.decode()


def test_a_demo_that_costs_money_wants_pay() -> None:
    done = callboard("demo", environ={"OPENAI_API_KEY": "sk-x"})
    assert done.returncode == 2
    assert price_sentence(60) in done.stderr.decode().replace("Error: ", "")
    assert "$0.48" in price_sentence(60)


@pytest.mark.parametrize("environ", [{"PAY": "1"}, {"CALLBOARD_SIMULATE": "on"}])
def test_paid_for_or_simulated_the_demo_goes_on(environ: dict[str, str]) -> None:
    assert callboard("demo", "--url", NOBODY, environ={"OPENAI_API_KEY": "sk-x", **environ}).returncode == 3


def test_data_is_sent_as_it_was_written(tmp_path: Path) -> None:
    written = '{"n": 12345678901234567890123, "x": 1.10}'
    (tmp_path / "data.json").write_text(written, encoding="utf-8")
    for given_ in (written, f"@{tmp_path / 'data.json'}"):
        assert bytes(read_data(given_)) == written.encode()
    body = event_body("a.b", read_data(written), partitionkey="k", id=None, source=None)
    assert body == b'{"type":"a.b","partitionkey":"k","data":' + written.encode() + b"}"


def test_data_from_standard_input_is_read() -> None:
    assert b"not JSON" in callboard("send", "a.b", "--data", "-", stdin=b"\xff").stderr
    assert callboard("send", "a.b", "--data", "-", stdin=b"{}", environ={"CALLBOARD_URL": NOBODY}).returncode == 3


def test_a_problem_is_told_with_the_path_of_the_field() -> None:
    problem = {
        "type": "about:blank",
        "title": "Invalid event",
        "status": 422,
        "detail": "data does not fit ticket.opened",
        "errors": [{"path": "$.data.subject", "message": "Expected `str`\u0007"}],
    }
    assert refusal(422, msgspec.json.encode(problem)).message == (
        "Invalid event: data does not fit ticket.opened\n  $.data.subject: Expected `str`\N{REPLACEMENT CHARACTER}"
    )


@given(st.text())
def test_what_is_printed_never_steers_the_terminal(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))


def test_an_event_is_shown_plainly_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    present(EVENT, as_json=False)
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "status    succeeded\n" in output
    assert "took      250 ms\n" in output
    assert "seq\tat\twhat\tstep\tattempt\tms\tdetail\n1\t12:00:00.000\taccepted\t\t\t\t\n" in output
    assert "2\t12:00:00.100\tstep\tclassify\N{REPLACEMENT CHARACTER}[31m\t1\t41.2\t\n" in output
    assert '"intent": "thanks"' in output


def test_json_is_the_whole_answer(capsys: pytest.CaptureFixture[str]) -> None:
    present(EVENT, as_json=True)
    assert msgspec.json.decode(capsys.readouterr().out) == EVENT


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.51, 3.0), (0.99, 4.0), (0.0, 1.0)])
def test_percentiles(share: float, value: float) -> None:
    tickets = [view(finished_at=f"2026-03-01T12:00:00.00{ms}Z") for ms in (2, 4, 3, 1)]
    assert took_ms([*tickets, view(finished_at=None)], share) == value
    assert took_ms([], share) == 0.0


def test_the_tally_counts_what_ended_and_what_was_right() -> None:
    tickets = [
        view(),
        view(result={"intent": "refund_request"}),
        view(status="dead", result=None),
        view(result=["other"]),
    ]
    fed = Fed(Counter(succeeded=8, dead=1), [tickets[2].event_id], tickets)
    told = dict(rows(fed, ["thanks", "thanks", "thanks", None]))
    assert (told["done"], told["intent right"]) == ("8 of 9", "1 of 3 (33.3 %)")
    assert told["tickets with simulated parts"] == "1"
    assert last_line(fed) == "done=8 dead=1 calls=8 cost_usd=0.004000 p50_ms=250 p99_ms=250"


async def test_no_more_than_the_limit_are_in_hand() -> None:
    in_hand, most = 0, 0

    async def act(item: int) -> int:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        await asyncio.sleep(0)
        in_hand -= 1
        return item * item

    assert await at_most(3, range(20), act) == [item * item for item in range(20)]
    assert most == 3


async def test_the_first_error_ends_the_rest() -> None:
    begun: list[int] = []

    async def act(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise ValueError(item)
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="1"):
        await at_most(4, range(20), act)
    assert begun == [0, 1, 2, 3]
