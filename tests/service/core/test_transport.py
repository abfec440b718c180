"""Servers that speak TLS with an authority of their own: who is taken for them, and what is said where anybody is."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from service.core import postgres_url, transport
from service.core.errors import StartError
from service.core.postgres_address import _system_trust
from service.core.postgres_preflight import check_postgres
from service.core.preflight import check_redis
from service.core.redis_address import redis_address
from service.core.servers import connect
from service.core.settings import Settings
from service.core.transport import is_public, warn_if_exposed
from service.embedded import Server
from tests.board import TICKET, board_on
from tests.debian import redis_environment
from tests.pgbouncer import pgbouncer, pgbouncer_in
from tests.processes import ROOT
from tests.servers import open_folder
from tests.tls import PASSWORD, Certified, certified, tls_postgres, tls_redis

PLAIN: Final = "names a server on the internet, which may be reached without TLS"
UNVERIFIED: Final = "names a server on the internet, which is reached by TLS that takes any server for the right one"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


@pytest.fixture(scope="module")
def by(folder: Path) -> Certified:
    return certified(folder / "tls")


@pytest.fixture(scope="module")
def another(folder: Path) -> Certified:
    return certified(folder / "another")


@pytest.fixture(scope="module")
def debian(folder: Path) -> dict[str, str]:
    return redis_environment(folder / "debian")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged of the way to a server, where this machine counts as the internet."""

    async def public(host: str) -> bool:
        return not host.startswith("/")

    monkeypatch.setattr(transport, "is_public", public)
    with caplog.filtering(OfTheWay()):
        yield caplog


class OfTheWay(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "is a superuser" not in record.getMessage()


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("10.0.0.2", False),
        ("172.20.0.3", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("fd00::1", False),
        ("fe80::1%lo", False),
        ("/run/postgresql", False),
        ("", False),
        ("no-such-host.invalid", False),
    ],
)
async def test_what_is_on_the_internet(host: str, public: bool) -> None:
    assert await is_public(host) is public


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://u:p@8.8.8.8/db", PLAIN),
        ("postgresql://u:p@8.8.8.8/db?sslmode=prefer&sslrootcert=FILE", PLAIN),
        ("postgresql://u:p@10.0.0.1,8.8.8.8/db?sslmode=disable", PLAIN),
        ("postgresql://u:p@8.8.8.8/db?sslmode=require", UNVERIFIED),
        ("postgresql://u:p@8.8.8.8/db?sslmode=require&channel_binding=require", UNVERIFIED),
        ("postgresql://u:p@8.8.8.8/db?sslmode=require&sslrootcert=FILE", ""),
        ("postgresql://u:p@8.8.8.8/db?sslmode=verify-ca&sslrootcert=FILE", ""),
        ("postgresql://u:p@8.8.8.8/db?sslmode=verify-full&sslrootcert=system", ""),
        ("postgresql://u:p@10.0.0.1/db", ""),
        ("postgresql:///db?host=/run/postgresql", ""),
        ("redis://:p@8.8.8.8:6379/0", PLAIN),
        ("valkey://8.8.8.8", PLAIN),
        ("rediss://:p@8.8.8.8?ssl_cert_reqs=none", UNVERIFIED),
        ("rediss://:p@8.8.8.8?ssl_check_hostname=false", UNVERIFIED),
        ("rediss://:p@8.8.8.8?ssl_ca_certs=FILE", ""),
        ("rediss://:p@8.8.8.8", ""),
        ("redis://192.168.0.1", ""),
        ("unix:///run/redis.sock", ""),
    ],
)
async def test_one_sentence_where_a_server_of_the_internet_may_be_another(
    url: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = url.replace("FILE", __file__)
    if url.startswith("postgresql"):
        address = postgres_url.read(url)
        await warn_if_exposed("DATABASE_URL", address.hosts, address.weakness)
    else:
        where = redis_address(url)
        await warn_if_exposed("REDIS_URL", [where.host], where.weakness)
    if sentence:
        (message,) = caplog.messages
        assert sentence in message
        assert "8.8.8.8" not in message
        assert message.startswith("DATABASE_URL" if url.startswith("postgresql") else "REDIS_URL")
    else:
        assert not caplog.messages


MANAGED: Final = (ROOT / "deploy/managed-servers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("url", sorted(set(re.findall(r"`((?:postgres|redis|valkey)\w*://\S*@\S*)`", MANAGED))))
def test_the_vendors_addresses_are_read_and_make_sure_of_the_server(url: str) -> None:
    """Only those are weak of which the document says so; each names a file where the containers have it."""
    for name in ("postgres_ca", "redis_ca"):
        url = url.replace(f"/run/secrets/{name}", __file__)
    weakness = postgres_url.read(url).weakness if url.startswith("postgres") else redis_address(url).weakness
    assert weakness == ("unverified" if ".compute-1.amazonaws.com" in url else None)


def test_every_vendor_has_an_address() -> None:
    rows = [line.split(" | ") for line in MANAGED.partition("\n## What was tried")[0].splitlines() if "| [" in line]
    assert len(rows) >= 14
    assert [row[0] for row in rows if "://" not in row[1]] == []


async def test_a_postgres_with_its_own_authority(
    folder: Path, by: Certified, another: Certified, settings: Settings, log: pytest.LogCaptureFixture
) -> None:
    """Debian's own Postgres: who is taken for it, and what is said."""
    async with tls_postgres(folder / "postgres", by) as port:

        def at(query: str, host: str = "localhost") -> Settings:
            return replace(settings, database_url=f"postgresql://callboard:{PASSWORD}@{host}:{port}/postgres?{query}")

        full, authority = f"sslmode=verify-full&sslrootcert={by.authority}", f"sslrootcert={by.authority}"
        await check_postgres(at(full), "API")
        connection = await connect(at(full), "test")
        assert await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        await connection.close()
        await check_postgres(at(f"sslmode=verify-ca&{authority}", "127.0.0.1"), "API")
        await check_postgres(at(f"sslmode=require&{authority}", "127.0.0.1"), "API")
        assert not log.messages
        for query, host in (
            (full, "127.0.0.1"),  # another name than the certificate's
            (f"sslmode=verify-full&sslrootcert={another.authority}", "localhost"),
            (f"sslmode=require&sslrootcert={another.authority}", "localhost"),
            ("sslmode=verify-full&sslrootcert=system", "localhost"),
        ):
            with pytest.raises(StartError, match="The TLS of Postgres is refused: CERTIFICATE_VERIFY_FAILED"):
                await check_postgres(at(query, host), "API")
        assert not log.messages
        with pytest.raises(StartError, match="no encryption"):
            await check_postgres(at("sslmode=disable"), "API")
        assert PLAIN in log.messages[-1]
        await check_postgres(at("sslmode=require"), "API")
        assert UNVERIFIED in log.messages[-1]


async def test_a_redis_with_its_own_authority(
    folder: Path,
    by: Certified,
    another: Certified,
    debian: dict[str, str],
    settings: Settings,
    log: pytest.LogCaptureFixture,
) -> None:
    async with tls_redis(folder / "redis", by, debian) as port:

        def at(query: str, host: str = "localhost") -> Settings:
            return replace(settings, redis_url=f"rediss://:{PASSWORD}@{host}:{port}/0?{query}")

        own = f"ssl_ca_certs={by.authority}"
        await check_redis(at(f"{own}&ssl_check_hostname=true"))
        await check_redis(at(own, "127.0.0.1"))
        assert not log.messages
        for query, host in (
            (f"{own}&ssl_check_hostname=true", "127.0.0.1"),
            (f"ssl_ca_certs={another.authority}", "localhost"),
            ("", "localhost"),
        ):
            with pytest.raises(StartError, match="the certificate of Redis is not trusted"):
                await check_redis(at(query, host))
        assert not log.messages
        await check_redis(at("ssl_cert_reqs=none"))
        assert UNVERIFIED in log.messages[-1]


async def test_a_whole_callboard_by_tls_alone(
    folder: Path, by: Certified, debian: dict[str, str], settings: Settings, servers: tuple[Server, Server]
) -> None:
    """Postgres behind Debian's PgBouncer, which speaks the TLS, and Debian's Redis; both names have to fit."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    root = pgbouncer_in(folder / "pgbouncer")
    for each in (by.made, by.key):
        each.chmod(0o644)
    secured = {
        "client_tls_sslmode": "require",
        "client_tls_key_file": str(by.key),
        "client_tls_cert_file": str(by.made),
        "pool_mode": "session",
        "default_pool_size": "60",
    }
    async with pgbouncer(root, servers[0], **secured) as bouncer, tls_redis(folder / "both", by, debian) as port:
        database_url = f"{bouncer.address.replace('127.0.0.1', 'localhost')}/{name}"
        given = replace(
            settings,
            database_url=f"{database_url}?sslmode=verify-full&sslrootcert={by.authority}",
            redis_url=f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={by.authority}&ssl_check_hostname=true",
            simulate="on",
        )
        await check_postgres(given, "worker")
        await check_redis(given)
        with pytest.raises(StartError):
            await check_postgres(replace(given, database_url=f"{database_url}?sslmode=disable"), "API")
        async with board_on(given) as board:
            assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"
            assert (await board.http.get("/readyz")).json()["degraded"] == []


async def test_the_authorities_of_this_machine_sign_for_everybody_so_names_have_to_fit(
    folder: Path, by: Certified, debian: dict[str, str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the test's authority were one of those that every machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(by.authority))
    _system_trust.cache_clear()
    try:
        async with tls_postgres(folder / "trusted", by) as port:
            query = "sslmode=verify-full&sslrootcert=system"
            url = f"postgresql://callboard:{PASSWORD}@localhost:{port}/postgres?{query}"
            await check_postgres(replace(settings, database_url=url), "API")
            with pytest.raises(StartError, match="The TLS of Postgres is refused"):
                await check_postgres(replace(settings, database_url=url.replace("localhost", "127.0.0.1")), "API")
    finally:
        _system_trust.cache_clear()
    async with tls_redis(folder / "trusted-redis", by, debian) as port:
        await check_redis(replace(settings, redis_url=f"rediss://:{PASSWORD}@localhost:{port}/0"))
        with pytest.raises(StartError, match="the certificate of Redis is not trusted"):
            await check_redis(replace(settings, redis_url=f"rediss://:{PASSWORD}@127.0.0.1:{port}/0"))
