"""What is wrong with Redis stops each program at boot with one sentence; what is away does not."""

import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from service.core.errors import StartError
from service.core.preflight import check_redis, preflight
from service.core.redis_owner import RedisOwner, adopt
from service.core.servers import open_redis
from service.core.settings import Settings
from tests.board import TICKET, board_on
from tests.debian import redis_environment
from tests.eventually import eventually
from tests.processes import CALLBOARD, UP, free_port, run
from tests.redis_servers import RedisServer, certificate, redis_server
from tests.servers import NAMES, open_folder

PASSWORD: Final = "päss-w0rd/of?ours"
ENCODED: Final = "p%C3%A4ss-w0rd%2Fof%3Fours"
PROGRAMS: Final = {
    "up": UP,
    "api": (sys.executable, "-m", "service"),
    "worker": (sys.executable, "-m", "workers"),
    "uvicorn": (sys.executable, "-m", "uvicorn", "--factory", "service:create_app"),
    "arq": (sys.executable, "-m", "arq", "workers.WorkerSettings"),
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


@pytest.fixture
async def secured(folder: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(folder / "secured", "--requirepass", PASSWORD) as server:
        yield server


def environment(settings: Settings, url: str) -> dict[str, str]:
    where = {"CALLBOARD_DATA_DIR": settings.data_dir, "CALLBOARD_PORT": str(free_port())}
    return {"DATABASE_URL": settings.database_url, "REDIS_URL": url, "CALLBOARD_SIMULATE": "on", **where}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_wrong_password_stops_each_program(name: str, settings: Settings, secured: RedisServer) -> None:
    done = run(PROGRAMS[name], environment(settings, secured.url(f":{ENCODED}x@")))
    assert done.returncode == 1, done.stderr
    assert "REDIS_URL: Redis refuses this user name or password" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [each for each in ("päss", "w0rd", "p%C3", "ours") if each in done.stderr + done.stdout]


async def test_the_right_one_works_in_every_form(settings: Settings, secured: RedisServer) -> None:
    for url in (
        secured.url(f":{ENCODED}@"),
        secured.url(f"default:{ENCODED}@", 3),
        f"unix://:{ENCODED}@{secured.socket}?db=2",
        f"unix://{secured.socket}?password={ENCODED}",
        f"valkey://default:{ENCODED}@127.0.0.1:{secured.port}?db=1&protocol=2",
    ):
        await check_redis(replace(settings, redis_url=url))
    with pytest.raises(StartError, match="no database of that number"):
        await check_redis(replace(settings, redis_url=secured.url(f":{ENCODED}@", 9999)))
    with pytest.raises(StartError, match="or asks for one"):
        await check_redis(replace(settings, redis_url=secured.url()))


async def test_a_whole_callboard_runs_on_a_socket(settings: Settings, secured: RedisServer) -> None:
    given = replace(settings, redis_url=f"unix://:{ENCODED}@{secured.socket}?db=2")
    async with board_on(replace(given, simulate="on")) as board:
        event = await board.ended(await board.send("ticket.opened", TICKET))
        assert event["status"] == "succeeded"
        ready = await board.http.get("/readyz")
        assert (ready.status_code, ready.json()["degraded"]) == (200, [])


async def test_a_password_that_turns_wrong_later_is_refused_and_not_away(
    settings: Settings, secured: RedisServer
) -> None:
    given = replace(settings, redis_url=secured.url(f":{ENCODED}@"), simulate="on")
    async with board_on(given) as board:
        async with Redis.from_url(given.redis_url) as client:
            await client.config_set("requirepass", "another")
            await client.client_kill_filter(_type="normal", skipme=True)
            await client.client_kill_filter(_type="pubsub", skipme=True)

        async def refused() -> bool:
            (degraded,) = (await board.http.get("/readyz")).json()["degraded"]
            (worker,) = (await board.http.get("/workers")).json()["items"]
            return (degraded["reason"], worker["state"], worker["reason"]) == ("refused", "disconnected", "refused")

        assert await eventually(refused, 40)
        assert (await board.post("ticket.opened", TICKET)).status_code == 202


async def test_a_cluster_stops_the_boot(settings: Settings, folder: Path) -> None:
    async with redis_server(folder / "cluster", "--cluster-enabled", "yes") as server:
        done = run(PROGRAMS["worker"], environment(settings, server.url()))
        assert (done.returncode, "that is a Redis Cluster" in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr
        with pytest.raises(StartError, match="that is a Redis Cluster"):
            preflight(replace(settings, redis_url=server.url()), "worker")


async def test_tls_that_does_not_fit_stops_the_boot(settings: Settings, folder: Path) -> None:
    """On Debian's own server: the one in the wheel speaks no TLS."""
    environ = redis_environment(folder / "debian")
    made, key = certificate(folder / "tls")
    port = free_port()
    options = ("--tls-port", str(port), "--port", "0", "--tls-cert-file", str(made), "--tls-key-file", str(key))
    trusted = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={made}"
    async with redis_server(folder / "with-tls", *options, "--tls-auth-clients", "no", environ=environ) as server:
        for url, sentence in (
            (f"rediss://127.0.0.1:{port}/0", "the certificate of Redis is not trusted"),
            (f"redis://127.0.0.1:{port}/0", "has to begin with rediss://"),
        ):
            with pytest.raises(StartError, match=sentence):
                await check_redis(replace(settings, redis_url=url))
        for url in (
            trusted,
            f"{trusted}&ssl_check_hostname=true",
            f"rediss://127.0.0.1:{port}?ssl_cert_reqs=CERT_NONE",
        ):
            await check_redis(replace(settings, redis_url=url))
        async with board_on(replace(settings, redis_url=trusted, simulate="on")) as board:
            assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"
        assert server.process.poll() is None


async def test_tls_with_a_server_that_speaks_none(settings: Settings, secured: RedisServer) -> None:
    with pytest.raises(StartError, match="speaks no TLS"):
        await check_redis(replace(settings, redis_url=f"rediss://:{ENCODED}@127.0.0.1:{secured.port}/0"))


async def test_what_is_away_is_waited_for(settings: Settings) -> None:
    await check_redis(replace(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    await check_redis(replace(settings, redis_url="redis://no-such-host.invalid/0"))
    await check_redis(replace(settings, redis_url="unix:///no/such/socket"))
    await check_redis(replace(settings, database_url="postgresql://127.0.0.1:9/nowhere"))


async def test_another_owner_stops_the_boot_and_names_both_and_the_way_out(settings: Settings) -> None:
    async with open_redis(settings) as redis:
        await redis.set(NAMES.owner, "somebody-else")
        done = run(PROGRAMS["api"], environment(settings, settings.redis_url))
        assert done.returncode == 1
        assert "Redis belongs to Callboard 'somebody-else', and this is " in done.stderr
        assert "callboard migrate --adopt-redis" in done.stderr
        assert "Traceback" not in done.stderr
        assert await redis.keys() == [NAMES.owner.encode()], "nothing is written beside another's mark"

        done = run((*CALLBOARD, "migrate", "--adopt-redis"), environment(settings, settings.redis_url))
        assert (done.returncode, "and did to somebody-else" in done.stdout) == (0, True), done.stderr
        await check_redis(settings)
        await check_redis(settings)


async def test_a_mark_that_is_gone_or_is_no_text_is_written_anew(settings: Settings) -> None:
    async with open_redis(settings) as redis:
        ours = (await adopt(settings))[1].encode()
        await redis.flushdb()
        await RedisOwner(settings).look(redis)
        assert await redis.get(NAMES.owner) == ours
        for name in (NAMES.owner, NAMES.epoch):
            await redis.delete(name)
            await redis.sadd(name, "no text")  # type: ignore[misc]
        assert await RedisOwner(settings).look(redis) == (await redis.get(NAMES.epoch) or b"").decode()
        assert await redis.get(NAMES.owner) == ours
        assert await adopt(settings) == (ours.decode(), ours.decode())


async def test_an_adopted_redis_gets_letters_behind_those_it_has(settings: Settings) -> None:
    """Their stream refuses smaller ids than it has seen, which a new database would begin with."""
    async with open_redis(settings) as redis:
        await redis.set(NAMES.owner, "somebody-else")
        await redis.xadd(NAMES.dead, {"dead_id": "theirs"}, id="700-0")
    await adopt(settings)
    async with board_on(settings) as board:
        await board.redis.xadd(NAMES.ingest, {"event": "no event"})

        async def relayed() -> bool:
            return bool(await board.redis.xlen(NAMES.dead) == 2)

        assert await eventually(relayed)


async def test_what_redis_does_not_take_has_its_reason(settings: Settings, folder: Path) -> None:
    """Full, a replica, frozen: each is degraded with its reason, and gone when it is over; a PING would not tell."""
    async with (
        redis_server(folder / "hurt") as server,
        Redis.from_url(server.url()) as client,
        board_on(replace(settings, redis_url=server.url()), workers=0) as board,
    ):

        async def reasons() -> list[str]:
            return [reason["reason"] for reason in (await board.http.get("/readyz")).json()["degraded"]]

        assert await reasons() == []
        await client.config_set("maxmemory", 1)
        assert await reasons() == ["full"]
        (first,) = (await board.http.get("/readyz")).json()["degraded"]
        assert (await board.http.get("/readyz")).json()["degraded"] == [first], "since it began"
        assert 'callboard_redis_degraded{reason="full"} 1.0' in (await board.http.get("/metrics")).text
        await client.config_set("maxmemory", 0)
        assert await reasons() == []
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert await reasons() == ["read-only"]
        await client.execute_command("REPLICAOF", "NO", "ONE")
        assert await reasons() == []
        server.process.send_signal(signal.SIGSTOP)
        assert await reasons() == ["away"]
        server.process.send_signal(signal.SIGCONT)
        assert await eventually(lambda: _none(reasons))


async def _none(reasons: Callable[[], Awaitable[list[str]]]) -> bool:
    return await reasons() == []
