"""Ready is who could do its work: what was done says so, against the real thing."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import httpx
import pytest
from msgspec.structs import replace

from service.core import readiness
from service.core.errors import StartError
from service.core.metrics import Meters
from service.core.migrate import migrate
from service.core.postgres_errors import SENTENCES, NoVectors, reason_of
from service.core.postgres_preflight import ProgramName, check_postgres
from service.core.readiness import NOT_READY_S, CommitHealth
from service.core.roles import as_owner
from service.core.servers import open_pool, postgres_passes
from service.core.settings import Settings
from service.embedded import Server
from tests.board import TICKET, board_on, serving
from tests.eventually import eventually
from tests.keys import AT_HOME
from tests.second_postgres import database, second_postgres
from tests.servers import ask, open_folder
from workers.bootstrap import program
from workers.engine.supervisor import open_worker
from workers.health import ailing

HOST = socket.gethostname()
ROLE = "app"
PROGRAMS: tuple[ProgramName, ...] = ("API", "worker")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_commits_that_fail_for_a_time_are_no_readiness() -> None:
    clock = Clock()
    health = CommitHealth("store", Meters(), clock)
    assert (health.reason, health.failing) == (None, None)
    clock.now_s = 5
    assert health.idle_s == 5
    health.writing = 1
    assert health.idle_s == 0
    health.writing = 0

    def seen() -> tuple[str | None, str | None]:
        return health.reason, health.failing

    begun = health.begin()
    clock.now_s = 15
    assert health.failed(TimeoutError(), begun) == "away"
    assert (seen(), health.idle_s) == (("away", None), 0)
    clock.now_s = begun + NOT_READY_S - 0.1
    assert health.failed(asyncpg.TooManyConnectionsError("text"), clock.now_s) == "connections"
    assert seen() == ("connections", None)
    clock.now_s = begun + NOT_READY_S
    assert seen() == ("connections", "connections"), "since the first, by the last"
    health.succeeded()
    assert seen() == (None, None)


def test_what_errors_mean() -> None:
    assert {
        reason_of(asyncpg.TooManyConnectionsError("text")),
        reason_of(asyncpg.DiskFullError("text")),
        reason_of(asyncpg.ReadOnlySQLTransactionError("text")),
        reason_of(asyncpg.InvalidPasswordError("text")),
        reason_of(asyncpg.UndefinedColumnError("text")),
        reason_of(asyncpg.QueryCanceledError("text")),
        reason_of(NoVectors()),
        reason_of(ConnectionRefusedError()),
        reason_of(asyncpg.UniqueViolationError("text")),
    } == SENTENCES.keys() - {"busy"}
    assert reason_of(asyncpg.AdminShutdownError("text")) == reason_of(TimeoutError()) == "away"
    assert (
        reason_of(asyncpg.InsufficientPrivilegeError("text"))
        == reason_of(asyncpg.InvalidCatalogNameError("text"))
        == "refused"
    )
    for full in (
        asyncpg.InternalServerError("(EMAXCONNSESSION) max clients reached in session mode - limited to pool_size: 15"),
        asyncpg.InternalServerError("MaxClientsInSessionMode: max clients reached - in Session mode"),
        asyncpg.ProtocolViolationError("no more connections allowed (max_client_conn)"),
    ):
        assert (reason_of(full), postgres_passes(full)) == ("connections", True)
    assert not postgres_passes(asyncpg.InternalServerError("cache lookup failed"))
    assert reason_of(asyncpg.TargetServerAttributeNotMatched()) == "read-only"


async def test_a_pool_that_is_used_up_is_not_a_postgres_that_is_away(settings: Settings) -> None:
    async with open_pool(replace(settings, pool=1), "test") as pool, pool.acquire():
        with pytest.raises(TimeoutError) as caught:
            await pool.acquire(timeout=0.05)
        assert reason_of(caught.value, pool) == "busy"
    assert reason_of(TimeoutError(), pool) == "away"


@pytest.fixture
async def limited(settings: Settings, servers: tuple[Server, Server]) -> AsyncIterator[Settings]:
    """The database of the test for a role whose rights can be taken."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    await ask(servers[0].url, f"create role {ROLE} login")
    everything = "tables", "sequences", "functions"
    for each in everything:
        await ask(as_owner(settings).database_url, f"grant all on all {each} in schema public to {ROLE}")
    yield replace(settings, database_url=database(servers[0], name, ROLE))
    await ask(as_owner(settings).database_url, f"drop owned by {ROLE}")
    await ask(servers[0].url, f"drop role {ROLE}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "NOT_READY_S", 0.3)
    monkeypatch.setattr(readiness, "PROBE_AFTER_S", 0.05)


async def becomes(http: httpx.AsyncClient, status: int) -> str:
    """What `/readyz` says once it has this status."""

    async def fact() -> str:
        response = await http.get("/readyz")
        return str(response.json().get("detail", "ready")) if response.status_code == status else ""

    return await eventually(fact)


@pytest.mark.usefixtures("impatient")
async def test_an_idle_api_finds_out_that_it_could_store_nothing(
    limited: Settings, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(limited) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
        assert await becomes(http, 200) == "ready"
        await ask(as_owner(settings).database_url, f"revoke insert on events from {ROLE}")
        assert await becomes(http, 503) == "Postgres refuses the login, or a right that is needed"
        assert "permission denied for table events" in caplog.text
        await ask(as_owner(settings).database_url, f"grant insert on events to {ROLE}")
        assert await becomes(http, 200) == "ready"
    assert await ask(settings.database_owner_url, "select count(*) from events") == 0, "what it tried was rolled back"


@pytest.mark.usefixtures("impatient")
async def test_commits_of_events_that_fail(limited: Settings, settings: Settings) -> None:
    """Nobody's event is lost or a 500, and the API is not ready until one was stored."""
    async with serving(limited) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=15) as http:
        await ask(as_owner(settings).database_url, f"revoke insert on work from {ROLE}")
        sending = asyncio.create_task(http.post("/events", json={"type": "ticket.opened", "data": TICKET}))
        assert await becomes(http, 503) == "Postgres refuses the login, or a right that is needed"
        metrics = (await http.get("/metrics")).text
        assert 'callboard_commits_failing{commit="store",reason="refused"} 1.0' in metrics
        await ask(as_owner(settings).database_url, f"grant insert on work to {ROLE}")
        assert (await sending).status_code == 202
        assert await becomes(http, 200) == "ready"
        assert 'callboard_commits_failing{commit="store",reason="refused"} 0.0' in (await http.get("/metrics")).text


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_can_settle_nothing(limited: Settings, settings: Settings) -> None:
    """It is not ready, says why wherever one looks, and charges no attempt."""
    async with board_on(limited) as board:
        await ask(as_owner(settings).database_url, f"revoke insert on attempts from {ROLE}")
        event_id = await board.send("ticket.opened", TICKET)
        sentence = "every commit of its settle failed: Postgres refuses the login, or a right that is needed"

        async def disconnected() -> bool:
            (row,) = (await board.http.get("/workers")).json()["items"]
            return row["state"] == "disconnected" and sentence in row["reason"]

        assert await eventually(disconnected)
        assert sentence in str(await ailing(settings, HOST, None))
        assert (await board.show(event_id))["status"] == "running"
        await ask(as_owner(settings).database_url, f"grant insert on attempts to {ROLE}")
        shown = await board.ended(event_id)
        assert (shown["status"], shown["attempts"]) == ("succeeded", 1)

        async def ready() -> bool:
            return await ailing(settings, HOST, None) is None

        assert await eventually(ready)


@pytest.mark.usefixtures("impatient")
async def test_an_idle_worker_without_pgvector_is_not_ready(limited: Settings, settings: Settings) -> None:
    """It read, it claimed, and it ended nothing: ready is who could settle."""
    await ask(as_owner(settings).database_url, "create schema away")
    await ask(as_owner(settings).database_url, "alter extension vector set schema away")
    async with open_worker(program(limited)):

        async def disconnected() -> bool:
            return "Postgres has no pgvector that this role can use" in str(await ailing(settings, HOST, None))

        assert await eventually(disconnected)
        await ask(as_owner(settings).database_url, f"grant usage on schema away to {ROLE}")

        async def ready() -> bool:
            return await ailing(settings, HOST, None) is None

        assert await eventually(ready)


async def test_no_connection_left_is_said_and_charged_to_nobody(
    limited: Settings, settings: Settings, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Strangers take what there is, between the boot and the first event."""
    async with board_on(limited) as board, AsyncExitStack() as strangers:
        assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"
        strangers.push_async_callback(ask, servers[0].url, f"alter role {ROLE} connection limit -1")
        await ask(servers[0].url, f"alter role {ROLE} connection limit 0")
        pool = f"application_name = 'callboard worker' and usename = '{ROLE}'"
        await ask(
            as_owner(settings).database_url, f"select pg_terminate_backend(pid) from pg_stat_activity where {pool}"
        )
        event_id = await board.send("ticket.opened", TICKET)

        async def uncharged() -> bool:
            cause = str(await ask(as_owner(settings).database_url, "select cause from work where attempts = 0"))
            return "too many connections for role" in cause

        assert await eventually(uncharged, 20)
        assert "Postgres is away" not in caplog.text
        await ask(servers[0].url, f"alter role {ROLE} connection limit -1")
        shown = await board.ended(event_id, 30)
        assert (shown["status"], shown["attempts"]) == ("succeeded", 1)


async def test_a_standby(settings: Settings, servers: tuple[Server, Server]) -> None:
    """Made by pg_basebackup; reading works there, so that everything looked ready."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    with open_folder() as folder:
        async with second_postgres(folder / "standby", standby_of=servers[0]) as server:
            standby = replace(settings, database_url=database(server, name), database_owner_url="")
            for each in PROGRAMS:
                await check_postgres(standby, each)  # it may be promoted in a moment
            with pytest.raises(StartError, match=r"it is a standby, or read-only: no migration can run there\."):
                await migrate(standby)
            async with open_pool(standby, "test") as pool:
                with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                    await pool.fetch("select 1")
            async with serving(standby) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
                assert await becomes(http, 503) == "Postgres takes no writes: it is a standby, or read-only"
                async with open_worker(program(standby)):
                    assert "holds a lease" in str(await ailing(standby, HOST, None))
                    await ask(server.url, "select pg_promote()")
                    assert await becomes(http, 200) == "ready"

                    async def ready() -> bool:
                        return await ailing(standby, HOST, None) is None

                    assert await eventually(ready)
