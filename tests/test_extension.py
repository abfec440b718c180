"""One new file of each kind, no edit elsewhere: dropped into a copy of the project, they run in its real programs."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from service.core.program import MISFIT
from service.core.settings import Settings
from tests.board import ENDED
from tests.eventually import eventually
from tests.keys import AS_UP_DOES, AT_HOME
from tests.processes import START_S

ROOT = Path(__file__).parent.parent
PRODUCT = ("schemas", "prompts", "sql", "service", "workers")
NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:9/nowhere", "REDIS_URL": "redis://127.0.0.1:9"}

EVENT = """
    from schemas import Event


    class RefundAsked(Event, tag="refund.asked", frozen=True):
        order: str
        why: str
"""
NODE = """
    from msgspec import Struct

    from schemas.events.refunds import RefundAsked
    from workers.kit import Run


    class Judgement(Struct, frozen=True):
        fair: bool
        reply: str


    async def judge(run: Run, refund: RefundAsked) -> Judgement:
        return await run.llm.ask("refunds/judge", returns=Judgement, refund=refund)


    class Verdict(Struct, frozen=True):
        order: str
        reply: str


    async def answer(refund: RefundAsked, judgement: Judgement) -> Verdict:
        return Verdict(refund.order, judgement.reply)
"""
PIPELINE = """
    from schemas.events.refunds import RefundAsked
    from workers.kit import Pipeline
    from workers.nodes.refunds import answer, judge

    refunds = Pipeline(on=RefundAsked, flow=[judge, answer])
"""
PROMPT = """
    +++
    model = "smart"
    max_tokens = 300
    variables = ["refund"]
    +++
    Is it fair to pay back {{ refund.order }}? They say: {{ refund.why }}
"""
CRM = """
    from workers.kit import Settings


    class Crm(Settings, frozen=True):
        crm_url: str
"""
FILES = {
    "schemas/events/refunds.py": EVENT,
    "workers/nodes/refunds.py": NODE,
    "workers/pipelines/refunds.py": PIPELINE,
    "prompts/refunds/judge/v1.md": PROMPT,
}
# What a person may get wrong, and what the one sentence has to name.
MISTAKES: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "the pipeline forgotten": (
        {"workers/pipelines/refunds.py": None},
        ['"refund.asked"', "schemas.events.refunds.RefundAsked", "workers/pipelines/"],
    ),
    "two pipelines for one event": (
        {"workers/pipelines/returns.py": PIPELINE.replace("refunds = ", "returns = ")},
        ['"refund.asked"', "workers.pipelines.refunds.refunds", "workers.pipelines.returns.returns"],
    ),
    "two events with one type": (
        {"schemas/events/returns.py": EVENT.replace("RefundAsked", "ReturnAsked")},
        ['"refund.asked"', "schemas.events.refunds.RefundAsked", "schemas.events.returns.ReturnAsked"],
    ),
    "a parameter nobody gives": (
        {"workers/pipelines/refunds.py": PIPELINE.replace("[judge, answer]", "[answer]")},
        ["workers.nodes.refunds.answer", "`judgement: Judgement`", "Put a node that returns Judgement before it"],
    ),
    "a setting that has to be set": (
        {"workers/nodes/crm.py": CRM},
        ["CRM_URL is not set", "Crm.crm_url", "workers/nodes/crm.py:4"],
    ),
    "a prompt that uses what it does not declare": (
        {"prompts/refunds/judge/v1.md": PROMPT + "    {{ customer.name }}\n"},
        ["prompts/refunds/judge/v1.md", '"customer"'],
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's own folders, with the four files."""
    for folder in PRODUCT:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        assert not (tmp_path / path).exists()
        _write(tmp_path / path, text)
    return tmp_path


def _write(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink()
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(text).lstrip(), encoding="utf-8")


def _environment(folder: Path, **settings: str) -> dict[str, str]:
    alone = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **alone,
        "HOME": str(folder),
        "CALLBOARD_DATA_DIR": str(folder / "data"),
        **AS_UP_DOES,
        **settings,
    }


@asynccontextmanager
async def _program(module: str, folder: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    """`python -m module` in the copy; it has to live as long as the block, and to end well when asked to."""
    log = folder / f"{module}.log"
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, cwd=folder, env=environment, stdout=told, stderr=told
        )
    try:
        yield
        assert process.returncode is None, log.read_text(encoding="utf-8")
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() in (0, -15), log.read_text(encoding="utf-8")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


async def test_four_new_files_are_a_running_pipeline(copy: Path, settings: Settings) -> None:
    port = _free_port()
    environment = _environment(
        copy, DATABASE_URL=settings.database_url, REDIS_URL=settings.redis_url, CALLBOARD_PORT=str(port)
    )
    async with (
        _program("service", copy, environment),
        _program("workers", copy, environment),
        httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http,
    ):
        said = {"type": "refund.asked", "data": {"order": "O-1", "why": "It came broken."}}

        async def accepted() -> str | None:
            try:
                response = await http.post("/events", json={**said, "id": "1"})
            except httpx.TransportError:
                return None  # not yet listening
            assert response.status_code == 202, response.text
            return str(response.json()["event_id"])

        event_id = await eventually(accepted, START_S)

        async def ended() -> dict[str, Any] | None:
            shown: dict[str, Any] = (await http.get(f"/events/{event_id}")).json()
            return shown if shown["status"] in ENDED else None

        event = await eventually(ended, START_S)
        assert event is not None
    assert (event["status"], event["pipeline"], event["data"]) == ("succeeded", "refunds", said["data"]), event["error"]
    assert event["result"]["order"] == "O-1"
    assert event["result"]["reply"].startswith("(simulated reply)")
    calls = [moment for moment in event["timeline"] if moment["what"] == "call"]
    assert [call["step"] for call in calls] == ["judge"]
    assert "refunds/judge" in str(calls[0]["detail"])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_stops_the_worker_with_a_sentence_that_names_both_places(copy: Path, mistake: str) -> None:
    files, named = MISTAKES[mistake]
    for path, text in files.items():
        _write(copy / path, text)
    ended = subprocess.run(
        [sys.executable, "-m", "workers"],
        cwd=copy,
        env=_environment(copy, **NOWHERE),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (MISFIT, "")
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("callboard worker: ")
    assert sentence.endswith(".")
    assert not [each for each in named if each not in sentence], sentence
