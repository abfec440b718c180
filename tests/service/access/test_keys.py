"""Keys: kept as hashes, compared alike whatever they are, held for a moment, ended at once."""

import asyncio
import hmac
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

import service.access.keys
from service.access.keys import (
    AT_HOME,
    HELD_S,
    KEY,
    SESSION,
    Keys,
    look_up,
    mint,
    open_keys,
    presented,
    sign_in,
    sign_out,
)
from service.access.rates import Rate
from service.core.errors import StartError, Unavailable
from service.core.roles import as_owner
from service.core.servers import connect, open_pool
from service.core.settings import Settings
from service.http.serve import refuse_open_door
from tests.eventually import eventually
from tests.keys import TOKEN, make_key, revoke
from tests.processes import CALLBOARD, run


@pytest.fixture
async def keys(settings: Settings) -> AsyncIterator[Keys]:
    async with open_keys(settings) as opened:
        yield opened


def test_a_key_is_random_and_one_word() -> None:
    made = {mint(KEY) for _ in range(1_000)}
    assert len({key[:11] for key in made}) == 1_000
    assert all(re.fullmatch(r"cb_[0-9A-Za-z]{44}", key) for key in made)


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_can_be_looked_up(text: str) -> None:
    asked = presented(text)
    assert len(asked.hash) == 32
    assert "\0" not in asked.prefix
    assert text.startswith(asked.prefix)
    assert len(asked.prefix) <= 11


@pytest.mark.usefixtures("briefly")
async def test_a_key_is_one_until_it_is_revoked(settings: Settings, keys: Keys) -> None:
    assert await keys.find("") is None
    key = await make_key(settings, "ingest", tenant="acme")
    caller_key = await keys.find(key)
    assert caller_key is not None
    assert (caller_key.tenant, caller_key.prefix) == ("acme", key[:11])
    assert [caller_key.may(scope) for scope in ("ingest", "read", "operate", "admin")] == [True, False, False, False]
    await revoke(settings, key)

    async def ended() -> bool:
        return await keys.find(key) is None

    assert await eventually(ended, HELD_S + 1)


async def test_the_local_token_is_every_scope_of_the_default_tenant(settings: Settings, keys: Keys) -> None:
    assert await keys.find(TOKEN) == AT_HOME
    assert AT_HOME.may("admin")
    assert await keys.find(TOKEN[:-1] + "u") is None
    async with open_keys(replace(settings, local_token="")) as without:
        assert await without.find(TOKEN) is None
    away = replace(settings, database_url="postgresql://127.0.0.1:9/none")
    async with open_keys(away) as none, open_pool(settings, "test") as pool:
        assert await none.find(TOKEN) == AT_HOME, "without Postgres"
        session = await sign_in(pool, AT_HOME, timedelta(hours=1), keys.token)
    assert await keys.find(session) == AT_HOME
    renewed = replace(settings, local_token=f"cl_{'u' * 43}")
    for other in (renewed, replace(settings, local_token="")):
        async with open_keys(other) as those:
            assert await those.find(session) is None, "it ends with the token"


async def test_what_is_no_key_goes_the_same_way_as_what_is_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same statement and one comparison of two hashes in constant time, whatever is presented."""
    good, ended, late = [await make_key(settings, "read") for _ in range(2)] + [
        await make_key(settings, "read", lasts=timedelta(seconds=-1))
    ]
    await revoke(settings, ended)
    wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(service.access.keys, "hmac", type("Watched", (), {"compare_digest": staticmethod(compare)}))
    connection = await connect(settings, "test")
    await look_up(connection, [], None)  # a driver's first look at the types of a statement
    asked: list[str] = []
    connection.add_query_logger(lambda record: asked.append(record.query))
    ways = []
    for text in (good, ended, late, wrong, good[:11], mint(KEY), mint(SESSION), "", "cb_", "\0'; --", "é" * 5_000):
        (found,) = await look_up(connection, [presented(text)], None)
        assert (found is not None) is (text == good), text
        await asyncio.sleep(0)  # the logger is called a turn later
        ways.append((tuple(asked), tuple(compared)))
        asked.clear()
        compared.clear()
    await connection.close()
    assert set(ways) == {((service.access.keys.SQL["look_up"],), ((32, 32),))}


async def test_many_at_once_each_get_their_own(settings: Settings, keys: Keys) -> None:
    made = {await make_key(settings, "read", tenant=f"t{n}"): f"t{n}" for n in range(5)}
    texts = [*made, *(mint(KEY) for _ in range(20)), *made]
    found = await asyncio.gather(*(keys.find(text) for text in texts))
    assert [each and each.tenant for each in found] == [made.get(text) for text in texts]


async def test_a_key_ends_when_it_expires(settings: Settings, keys: Keys) -> None:
    key = await make_key(settings, "read", lasts=timedelta(seconds=1))
    assert await keys.find(key) is not None

    async def ended() -> bool:
        return await keys.find(key) is None

    assert await eventually(ended, 1 + HELD_S + 1)


@pytest.mark.usefixtures("briefly")
async def test_a_session_is_its_keys_and_ends_with_it(settings: Settings, keys: Keys) -> None:
    key = await make_key(settings, "read", tenant="acme")
    caller_key = await keys.find(key)
    assert caller_key is not None
    async with open_pool(settings, "test") as pool:
        first, second, over = [await sign_in(pool, caller_key, timedelta(hours=1), None) for _ in range(2)] + [
            await sign_in(pool, caller_key, timedelta(seconds=-1), None)
        ]
        assert await keys.find(first) == caller_key
        assert await keys.find(over) is None
        await sign_out(pool, second)
        assert await keys.find(second) is None
        await sign_in(pool, caller_key, timedelta(hours=1), None)
        assert await pool.fetchval("select count(*) from sessions") == 2, "those that are over are swept away"
    await revoke(settings, key)

    async def ended() -> bool:
        return await keys.find(first) is None

    assert await eventually(ended, HELD_S + 1)


async def test_what_is_held_is_bounded(settings: Settings, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.access.keys, "HELD_MAX", 3)
    for _ in range(10):
        await keys.find(mint(KEY))
    assert len(keys._held) == 3


async def test_the_use_of_a_key_is_noted_once_a_minute(settings: Settings) -> None:
    key, unused = [await make_key(settings, "read") for _ in range(2)]
    connection = await connect(settings, "test")
    try:
        await look_up(connection, [presented(key), presented(key), presented(unused[:11])], None)
        first = dict(map(tuple, await connection.fetch("select prefix, last_used_at from keys")))
        assert (first[key[:11]] is not None, first[unused[:11]]) == (True, None)
        await look_up(connection, [presented(key)], None)
        assert dict(map(tuple, await connection.fetch("select prefix, last_used_at from keys"))) == first
        await connection.execute("update keys set last_used_at = last_used_at - interval '2 minutes'")
        await look_up(connection, [presented(key)], None)
        assert await connection.fetchval("select max(last_used_at) from keys") >= first[key[:11]]
    finally:
        await connection.close()


async def test_without_postgres_nobody_is_told_that_a_key_is_wrong(settings: Settings) -> None:
    async with open_keys(replace(settings, database_url="postgresql://127.0.0.1:9/none")) as keys:
        with pytest.raises(Unavailable):
            await keys.find(mint(KEY))


async def test_another_address_than_loopback_needs_a_key_at_boot(settings: Settings) -> None:
    outside = replace(settings, host="0.0.0.0")
    with pytest.raises(StartError, match=r"^CALLBOARD_HOST=0\.0\.0\.0 is open to others, and no key was made yet"):
        await asyncio.to_thread(refuse_open_door, outside)
    await revoke(settings, await make_key(settings, "read"))
    await asyncio.to_thread(refuse_open_door, outside)  # made once is enough: from then on all need one
    connection = await connect(as_owner(settings), "test")
    await connection.execute("drop table sessions; drop table keys")
    await connection.close()
    with pytest.raises(StartError, match="no key was made yet"):
        await asyncio.to_thread(refuse_open_door, outside)
    await asyncio.to_thread(refuse_open_door, replace(outside, database_url="postgresql://127.0.0.1:9/none"))


async def callboard(settings: Settings, *arguments: str, status: int = 0) -> tuple[str, str]:
    environ = {"DATABASE_URL": settings.database_url, "CALLBOARD_DATA_DIR": settings.data_dir}
    done = await asyncio.to_thread(run, (*CALLBOARD, "keys", *arguments), environ)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


async def test_a_key_is_shown_once_and_kept_nowhere(settings: Settings, keys: Keys) -> None:
    options = ("--name", "mail", "--tenant", "acme", "--scope", "ingest", "--scope", "operate", "--expires", "90d")
    out, err = await callboard(settings, "create", *options)
    key = out.removesuffix("\n")
    assert re.fullmatch(r"cb_[0-9A-Za-z]{44}", key)
    assert f"{key[:11]} may ingest, operate for tenant acme" in err
    caller_key = await keys.find(key)
    assert caller_key is not None
    assert (caller_key.tenant, caller_key.scopes) == ("acme", frozenset(("ingest", "operate")))
    table, _ = await callboard(settings, "list")
    listed, _ = await callboard(settings, "list", "--json")
    (row,) = json.decode(listed)
    assert (row["prefix"], row["name"], row["tenant"], row["state"]) == (key[:11], "mail", "acme", "valid")
    assert row["expires_at"] is not None
    assert await callboard(settings, "revoke", key) == (f"{key[:11]} is revoked\n", "")
    again = await callboard(settings, "revoke", key, status=4)
    assert f"no key {key[:11]} that is not revoked yet" in again[1]
    connection = await connect(settings, "test")
    kept = [str(dict(each)) for name in ("keys", "operations") for each in await connection.fetch(f"table {name}")]
    did = await connection.fetch(
        "select tenant, actor, action, detail ->> 'prefix' as prefix from operations order by at"
    )
    await connection.close()
    assert [tuple(action) for action in did] == [
        ("acme", "cli", f"{act}_key", key[:11]) for act in ("create", "revoke")
    ]
    for told in (err, table, listed, again[1], *kept):
        assert key[:11] in told
        assert key[11:] not in told
    assert "revoked" in (await callboard(settings, "list"))[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--expires", "90"), "a number with h, d or w behind it"),
        (("--expires", "0d"), "a number with h, d or w behind it"),
        (("--tenant", "A b"), "lower-case letters, digits"),
        (("--scope", "write"), "'write' is not one of"),
        (("--rate", "100"), "100/s, 100/min, 100/h"),
        (("--rate", "0/s"), "100/s, 100/min, 100/h"),
        (("--max-open", "0"), "a number from 1 to 100000"),
        (("--max-open", "100001"), "a number from 1 to 100000"),
    ],
)
async def test_what_create_does_not_take(settings: Settings, options: tuple[str, ...], sentence: str) -> None:
    assert sentence in (await callboard(settings, "create", *options, status=2))[1]


async def test_what_a_key_may_send_is_shown_and_changed(settings: Settings, keys: Keys) -> None:
    key = (await callboard(settings, "create", "--rate", "100/s", "--max-open", "10000"))[0].strip()
    caller_key = await keys.find(key)
    assert caller_key is not None
    assert (caller_key.rate, caller_key.max_open) == (Rate(100, "s"), 10_000)
    shown = []
    for options in ((), ("--rate", "5/min"), ("--max-open", "none"), ("--rate", "none", "--max-open", "7")):
        if options:
            await callboard(settings, "limit", key[:11], *options)
        (row,) = json.decode((await callboard(settings, "list", "--json"))[0])
        shown.append((row["rate"], row["max_open"]))
    assert shown == [("100/s", 10_000), ("5/min", 10_000), ("5/min", None), (None, 7)]
    keys.forget(key)
    changed = await keys.find(key)
    assert changed is not None
    assert (changed.rate, changed.max_open) == (None, 7)
    assert "say what it may send" in (await callboard(settings, "limit", key[:11], status=2))[1]
    assert "no key cb_nobody" in (await callboard(settings, "limit", "cb_nobody", "--rate", "1/s", status=4))[1]
    connection = await connect(settings, "test")
    did = await connection.fetch("select action, detail ->> 'rate' as rate from operations order by at")
    await connection.close()
    assert [tuple(action) for action in did] == [
        *(("create_key", "100/s"), ("limit_key", "5/min"), ("limit_key", "5/min"), ("limit_key", None)),
    ]


async def test_no_database_is_one_sentence(settings: Settings) -> None:
    away: Any = replace(settings, database_url="")
    assert "No Postgres: set DATABASE_URL" in (await callboard(away, "list", status=1))[1]
    away = replace(settings, database_url="postgresql://127.0.0.1:9/none")
    assert "Postgres can't do this" in (await callboard(away, "create", status=1))[1]
