"""Keys: who may come in, for which tenant and for what. Kept are hashes, shown is a key's beginning."""

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import sha256
from string import ascii_letters, digits
from typing import Final, Literal

import asyncpg
from msgspec import Struct

import sql
from schemas.envelope import TENANT
from service.access.rates import Rate, read_rate
from service.core.group_commit import GroupCommit
from service.core.servers import ACQUIRE_TIMEOUT_S, Connection, Pool, connect
from service.core.settings import Settings
from service.core.supervise import supervised

Scope = Literal["ingest", "documents", "read", "operate", "admin"]

KEY: Final = "cb_"
LOCAL: Final = "cl_"  # the local token: see service/access/local_token.py
SESSION: Final = "cs_"
PREFIX_CHARS: Final = 11
SECRET_CHARS: Final = 36  # of 62: 214 bits
IDLE_MAX: Final = timedelta(hours=12)
HELD_S: Final = 2.0
HELD_MAX: Final = 10_000
LOOK_UP_TIMEOUT_S: Final = 3.0
NOBODY: Final = bytes(32)
KEYS: Final = (KEY, LOCAL)
SQL: Final = sql.queries("keys")


class Key(Struct, frozen=True):
    """A key that is valid now; `admin` is every scope. `rate` and `max_open` bound the events that it sends."""

    prefix: str
    tenant: str
    scopes: frozenset[str]
    rate: Rate | None = None
    max_open: int | None = None

    def may(self, scope: Scope) -> bool:
        return not self.scopes.isdisjoint((scope, "admin"))


AT_HOME: Final = Key("local", TENANT, frozenset(("admin",)))
"""Whoever has the local token."""


class Presented(Struct, frozen=True):
    """A text as it is looked up; itself it goes no further."""

    prefix: str
    hash: bytes


def mint(kind: str) -> str:
    """A new secret, KEY or SESSION, in letters and digits, so that a double click takes the whole."""
    return kind + "".join(
        secrets.choice(ascii_letters + digits) for _ in range(PREFIX_CHARS + SECRET_CHARS - len(kind))
    )


def presented(text: str) -> Presented:
    return Presented(text[:PREFIX_CHARS] if text.isprintable() else "", sha256(text.encode()).digest())


class Keys:
    """Holds each answer for HELD_S, so that few requests cost a query. A text that is no key costs as much as a key.

    `token` is the hash of the local token, where there is one.
    """

    def __init__(self, settings: Settings) -> None:
        self.token: Final = presented(settings.local_token).hash if settings.local_token else None
        self._look_ups: Final = GroupCommit[Presented, Key | None](
            "keys", lambda: connect(settings, "keys"), lambda connection, batch: look_up(connection, batch, self.token)
        )
        self._held: Final[dict[bytes, tuple[float, Key | None]]] = {}

    async def run(self) -> None:
        """Look up until cancelled."""
        await self._look_ups.run()

    async def find(self, text: str) -> Key | None:
        """The valid key with this text, or the key of the session with it. Raises Unavailable while Postgres is away.

        The local token needs no Postgres.
        """
        parts = presented(text)
        if self.token is not None and hmac.compare_digest(self.token, parts.hash):
            return AT_HOME
        now = asyncio.get_running_loop().time()
        held = self._held.get(parts.hash)
        if held is None or held[0] <= now:
            key = await self._look_ups.put(parts, LOOK_UP_TIMEOUT_S)
            self.forget(text)
            if len(self._held) >= HELD_MAX:
                del self._held[next(iter(self._held))]
            self._held[parts.hash] = held = (now + HELD_S, key)
        return held[1]

    def forget(self, text: str) -> None:
        """Look it up anew the next time."""
        self._held.pop(presented(text).hash, None)


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[Keys]:
    keys = Keys(settings)
    async with supervised({"keys": keys.run}):
        yield keys


async def look_up(connection: Connection, batch: Sequence[Presented], token: bytes | None) -> list[Key | None]:
    """Reads the key of each by its prefix, then compares the hashes in constant time, whether the key is valid or not.

    A session of the local token is valid while that is the same `token`.
    """
    prefixes, hashes = [presented.prefix for presented in batch], [presented.hash for presented in batch]
    rows = await connection.fetch(SQL["look_up"], prefixes, hashes, IDLE_MAX, token)
    keys: list[Key | None] = []
    for presented, row in zip(batch, rows, strict=True):
        fits = hmac.compare_digest(row["hash"] or NOBODY, presented.hash)
        keys.append(_key(row) if fits and row["live"] else None)
    return keys


def _key(row: asyncpg.Record) -> Key:
    rate = read_rate(row["rate"]) if row["rate"] else None
    return Key(row["api_key"], row["tenant"], frozenset(row["scopes"]), rate, row["max_open"])


async def any_made(settings: Settings) -> bool:
    """Whether a key was ever made; where the schema knows none yet, none was."""
    connection = await connect(settings, "keys")
    try:
        return bool(await connection.fetchval(SQL["any_made"]))
    except asyncpg.UndefinedTableError:
        return False
    finally:
        await connection.close()


async def sign_in(pool: Pool, key: Key, lasts: timedelta, token: bytes | None) -> str:
    """The secret of a new session of this key. It ends after `lasts`, or when nobody has used it for IDLE_MAX.

    Where the key is AT_HOME, the session belongs to the local token, whose hash is `token`.
    """
    secret = mint(SESSION)
    parts = presented(secret)
    whose = (None, token) if key == AT_HOME else (key.prefix, None)
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        await connection.execute(SQL["sign_in"], parts.prefix, parts.hash, *whose, lasts, IDLE_MAX)
    return secret


async def sign_out(pool: Pool, token: str) -> str | None:
    """The prefix of the key whose session it was; None where it was none."""
    parts = presented(token)
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        prefix: str | None = await connection.fetchval(SQL["sign_out"], parts.prefix, parts.hash)
    return prefix
