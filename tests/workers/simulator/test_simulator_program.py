"""`callboard simulator`: a program of its own, which any SDK may talk to."""

import json
import re
import signal
from pathlib import Path

import openai
import pytest

from tests.processes import CALLBOARD, run, started
from tests.workers.simulator.sdks import asking


async def test_it_answers_with_the_faults_asked_for_and_ends_in_order(tmp_path: Path) -> None:
    calls = tmp_path / "calls.jsonl"
    options = ("--port", "0", "--seed", "7", "--latency-ms", "1", "--limit", "requests=2", "--log-file", str(calls))
    command = (*CALLBOARD, "simulator", *options, "--fault", "529,times=1")
    with started(command, tmp_path / "log", {"SIMULATOR_FAULTS": "ignored,by,the,option"}) as program:
        output = await program.says("ANTHROPIC_BASE_URL")
        match = re.search(r"OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+)/v1", output)
        assert match
        assert f"ANTHROPIC_BASE_URL={match[1]} " in output
        async with asking("openai", match[1]) as ask:
            with pytest.raises(openai.InternalServerError):
                await ask()
            assert (await ask()).stop == "stop"
            with pytest.raises(openai.RateLimitError):
                await ask()
        assert await program.ends(signal.SIGTERM) == 0
    logged = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
    assert [(call["n"], call["status"], call["ended"]) for call in logged] == [
        (1, 529, "answered"),
        (2, 200, "answered"),
        (3, 429, "answered"),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fault", "nonsense"), "'nonsense' is no fault"),
        (("--limit", "nonsense"), "'nonsense' is no limit"),
        (("--latency-ms", "-1"), "latency_ms"),
        (("--port", "x"), "not a valid integer"),
    ],
)
def test_wrong_usage_is_a_sentence(options: tuple[str, ...], says: str) -> None:
    done = run((*CALLBOARD, "simulator", "--port", "0", *options), {})
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_faults_come_from_the_environment_too() -> None:
    done = run((*CALLBOARD, "simulator", "--port", "0"), {"SIMULATOR_FAULTS": "529 nonsense"})
    assert "'nonsense' is no fault" in done.stderr
