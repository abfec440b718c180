"""What the programs log, as real processes: where it happened in each line, nothing an event said, and no secret."""

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.access.keys import PREFIX_CHARS, mint
from service.core.log import Lines
from service.core.settings import Settings
from tests.eventually import eventually
from tests.keys import AS_UP_DOES, AT_HOME
from tests.listening import listening_on
from tests.models import with_keys
from tests.processes import Program, free_port, product_in, started

SAID: Final = "marker-in-payload-7c1f"
KEY: Final = "marker-provider-key-51aa"
PASSWORD: Final = "marker-password-%2F-9e0b"
MARKS: Final = (SAID, KEY, PASSWORD, "marker-password-/-9e0b")
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"

EVENT: Final = '''
"""What must not leak."""

from schemas import Event


class Told(Event, tag="told", frozen=True):
    how: str
    text: str
'''
NODE: Final = '''
"""Every way to fail that quotes what was said."""

import asyncio
import logging
import os

from schemas.events.leaks import Told
from workers.kit import Run

log = logging.getLogger("mine")
strays: list[asyncio.Task[None]] = []


async def astray(text: str) -> None:
    raise ValueError(text)


async def tell(run: Run, told: Told) -> str:
    log.info("words of the user's own")
    if told.how == "ask":
        return await run.llm.ask("leaks/repeat", returns=str, text=told.text)
    if told.how == "stray":
        strays[:] = [asyncio.create_task(astray(told.text))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        strays.clear()
        return "done"
    try:
        raise KeyError(told.text)
    except KeyError as error:
        log.exception("mine failed, with %s", os.environ["ANTHROPIC_API_KEY"])
        raise ValueError(told.text) from error
'''
PIPELINE: Final = '''
"""Leaks."""

from schemas.events.leaks import Told
from workers.kit import Pipeline, Retry
from workers.nodes.leaks import tell

leaks = Pipeline(on=Told, flow=[tell], retry=Retry(attempts=1))
'''
PROMPT: Final = """+++
model = "fast"
max_tokens = 100
variables = ["text"]
+++
--- user ---
{{ text }}
"""


async def echo(request: Request) -> Response:
    """A provider that says back what it was sent, the key too."""
    told = f"{request.headers.get('x-api-key')} {(await request.body()).decode()}"
    return PlainTextResponse(told, status_code=401)


@asynccontextmanager
async def leaking(settings: Settings, folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Program, Program]]:
    copy = product_in(folder / "product")
    texts = {"schemas/events": EVENT, "workers/nodes": NODE, "workers/pipelines": PIPELINE}
    for package, text in texts.items():
        (copy / package / "leaks.py").write_text(text, encoding="utf-8")
    (copy / "prompts" / "leaks" / "repeat").mkdir(parents=True)
    (copy / "prompts" / "leaks" / "repeat" / "v1.md").write_text(PROMPT, encoding="utf-8")
    port = free_port()
    scheme, _, rest = settings.database_url.partition("://")
    user, _, where = rest.partition("@")
    app = Starlette(routes=[Route("/v1/messages", echo, methods=["POST"])])
    async with listening_on(app) as provider:
        environ = {
            "DATABASE_URL": f"{scheme}://{user.partition(':')[0]}:{PASSWORD}@{where}",
            "REDIS_URL": settings.redis_url,
            "CALLBOARD_DATA_DIR": settings.data_dir,
            "CALLBOARD_PORT": str(port),
            **AS_UP_DOES,
            "CALLBOARD_SIMULATE": "off",
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": provider,
        }
        with (
            started((sys.executable, "-m", "service"), folder / "api", environ, copy) as api,
            started((sys.executable, "-m", "workers"), folder / "worker", environ, copy) as worker,
        ):
            await worker.says("worker ready")
            async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                await eventually(lambda: _answers(http), 30)
                yield http, api, worker


async def _answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False


async def ended(http: httpx.AsyncClient, event_id: str) -> dict[str, Any]:
    async def fact() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await http.get(f"/events/{event_id}")).json()
        return shown if shown["finished_at"] or shown["error"] else None

    result = await eventually(fact, 30)
    assert result
    return result


async def test_they_say_where_and_never_what(settings: Settings, tmp_path: Path) -> None:
    async with leaking(settings, tmp_path) as (http, api, worker):
        ids = {}
        for how in ("raise", "stray", "ask"):
            body = {
                "type": "told",
                "data": {"how": how, "text": SAID},
                "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
            }
            answer = await http.post("/events", json=body)
            assert answer.status_code == 202, answer.text
            ids[how] = answer.json()["event_id"]
        shown = {how: await ended(http, event_id) for how, event_id in ids.items()}
        assert SAID in json.dumps(shown["raise"]["error"]), "the event's own record has it"
        assert shown["ask"]["error"]["kind"] == "Outage", "the key was refused"
        assert KEY not in json.dumps(shown)
        assert (await http.post("/events", json={"type": "told", "data": {"how": SAID}})).status_code == 422
        async with Redis.from_url(settings.redis_url) as redis:
            await redis.xadd("callboard:ingest", {"event": f'{{"type":"told","data":{{"{SAID}":1}}}}'})
            await redis.xadd("callboard:ingest", {"event": SAID})
        await worker.says("a stream entry is no event")
        await worker.says("never retrieved")
        connection = await asyncpg.connect(settings.database_url)
        await connection.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ 'callboard'"
        )
        await connection.close()
        await worker.says("starts again")
        lines = [json.loads(line) for line in worker.output.splitlines()]
        assert [mark for mark in MARKS if mark in worker.output + api.output] == []
        own = [line for line in lines if line["logger"] == "mine"]
        where = {line["event"]: (line["run"], line["attempt"], line["step"], line["trace"]) for line in own}
        assert where == dict.fromkeys(ids.values(), (1, 1, "tell", TRACE))
        (failed,) = [line for line in own if "traceback" in line]
        assert failed["message"] == "mine failed, with ***"
        assert "leaks.py" in failed["traceback"]
        assert "KeyError" in failed["traceback"]
        elsewhere = [line for line in lines if line["logger"] == "callboard.worker"]
        assert elsewhere
        assert not any("event" in line or "step" in line for line in elsewhere)


@pytest.mark.parametrize("plain", [False, True])
def test_an_errors_text_is_for_debug_only(plain: bool) -> None:
    try:
        try:
            raise KeyError(SAID)
        except KeyError as cause:
            raise ExceptionGroup("several", [ValueError(SAID)]) from cause
    except ExceptionGroup:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    told = Lines((), plain=plain, with_payloads=False).format(record)
    assert SAID not in told
    assert {name for name in ("ValueError", "KeyError", "ExceptionGroup") if name in told} == {
        "ValueError",
        "KeyError",
        "ExceptionGroup",
    }
    record.exc_text = None
    assert SAID in Lines((), plain=plain, with_payloads=True).format(record)


@pytest.mark.parametrize(
    ("settings", "secret"),
    [
        (Settings(database_url="postgresql://u:pass%40word@h/db"), "pass@word"),
        (Settings(database_url="postgresql://h/db?user=u&password=pass-word"), "pass-word"),
        (Settings(redis_url="redis://:pass-word@h:6379/0"), "pass-word"),
        (with_keys(Settings(), openai_api_key="sk-1234"), "sk-1234"),
        (with_keys(Settings(), anthropic_api_key='sk-"quoted"'), 'sk-"quoted"'),
        (with_keys(Settings(), gemini_api_key="AI-1234"), "AI-1234"),
    ],
)
def test_every_secret_is_blanked_out(settings: Settings, secret: str) -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "it is %s!", (secret,), None)
    line = Lines(settings.secrets, plain=False, with_payloads=False).format(record)
    assert json.loads(line)["message"] == "it is ***!"


def test_a_terminal_is_given_no_commands_by_a_strangers_text() -> None:
    told = "GET /\x1b]0;own\x07\x1b[2J\x9b31m\r\u202eevil\tx"
    record = logging.LogRecord("a", logging.INFO, "", 0, "%s failed\nhere", (told,), None)
    line = Lines((), plain=True, with_payloads=False).format(record)
    assert line.endswith("GET /\\x1b]0;own\\x07\\x1b[2J\\x9b31m\\r\\u202eevil\tx failed\nhere")


@pytest.mark.parametrize("kind", ["cb_", "cs_"])
def test_of_a_callers_key_only_its_name_is_logged(kind: str) -> None:
    key = mint(kind)
    record = logging.LogRecord("a", logging.INFO, "", 0, "%s was sent", (key,), None)
    line = Lines((), plain=False, with_payloads=False).format(record)
    assert json.loads(line)["message"] == f"{key[:PREFIX_CHARS]}*** was sent"
