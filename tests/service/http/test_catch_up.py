"""A client that comes late to an event of many large replies is told them a page at a time."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import pytest

from service.core.settings import Settings
from service.feed import catch_up
from tests.keys import AT_HOME
from tests.service.http.test_answers import keep, unread
from tests.service.http.test_connections import api_of
from tests.sse import Client

CLAIMS: Final = 2


async def keep_replies(settings: Settings, count: int, size: int) -> tuple[str, dict[str, str]]:
    """An event that has ended after so many replies in each claim, a step behind each; and what each step was told.

    The first call was answered in both claims: its second reply is the one that counts in the end.
    """
    (event_id,) = await keep(settings, [10])
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute(
        "update events set status = 'succeeded', run = 1, claim = $2, result = '{\"said\":true}' where event_id = $1",
        event_id,
        CLAIMS,
    )
    await connection.execute(
        "insert into calls (call_id, event_id, run, claim, step, question_hash, at, prompt, version,"
        " hash, request_hash, provider, model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, simulated, memory,"
        " feed_n, reply)"
        " select gen_random_uuid(), $1, 1, claim, step, 'asked', now(), 'p', 1, '', '', 'openai', 'm', 1, 1, 0, true,"
        " 1, 'ok', false, true, 4 * n - 2, step || ' in ' || claim || ':' || repeat('a', $4)"
        " from generate_series(1, $2) as claim, generate_series(1, $3) as n,"
        " lateral (select case n when 1 then 'first' else 's' || claim || '-' || n end as step) as named",
        *(event_id, CLAIMS, count, size),
    )
    await connection.execute(
        "insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome, steps)"
        " select $1, claim, 1, 1, $1, now(), now(), 'failed', json_agg(json_build_object("
        " 'step', 't' || claim || '-' || n, 'state', 'done', 'ms', 1, 'n', 4 * n) order by n desc)::jsonb"
        " from generate_series(1, $2) as claim, generate_series(1, $3) as n group by claim",
        *(event_id, CLAIMS, count),
    )
    rows = await connection.fetch("select step, reply from calls where event_id = $1 order by claim", event_id)
    await connection.close()
    return event_id, {row["step"]: row["reply"] for row in rows}


def steps_of(client: Client) -> list[str]:
    """What was told, in order: the step that a reply is of, or that has ended."""
    return [
        message.data.get("step", message.event)
        for message in client.heard
        if message.event not in ("status", "restart")
    ]


def in_order(count: int) -> list[str]:
    """The replies and the steps by their places."""
    names = []
    for claim in range(1, CLAIMS + 1):
        for n in range(1, count + 1):
            names += ["first" if n == 1 else f"s{claim}-{n}", f"t{claim}-{n}"]
    return [*names, "end"]


@pytest.mark.parametrize("page_max", [1, 1_000, 1 << 30])
@pytest.mark.parametrize("most", [None, 1, 7])
async def test_whatever_a_page_holds_each_thing_is_told_once_and_in_order(
    api: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, page_max: int, most: int | None
) -> None:
    """In one connection, or in many that go on by Last-Event-ID after so many messages."""
    monkeypatch.setattr(catch_up, "PAGE_MAX", page_max)
    monkeypatch.setattr(catch_up, "PAGE", 3)
    event_id, replies = await keep_replies(settings, 6, 90)
    client = Client(event_id)
    while not client.over:
        await client.follow(api, most)
    assert steps_of(client) == in_order(6)
    assert {step: text for (step, _), text in client.texts.items()} == replies
    numbers = [int(message.id) for message in client.heard]
    assert numbers == sorted(set(numbers))
    assert client.heard[-1].data == {"status": "succeeded", "result": {"said": True}}


async def test_followers_of_many_large_replies_hold_little(settings: Settings, tmp_path: Path) -> None:
    """All of them together held 180 MB. Who reads is told all of it, and goes on where it stopped."""
    event_id, replies = await keep_replies(settings, 20, 300_000)
    async with api_of(settings, tmp_path) as api, AsyncExitStack() as stack:
        before_mb = api.memory_mb
        for _ in range(12):
            await stack.enter_async_context(unread(api.port, requests=1, path=f"/events/{event_id}/stream"))
        client, most_mb = Client(event_id), 0.0
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{api.port}", timeout=30) as http:
            while not client.over:
                await client.follow(http, 20)
                most_mb = max(most_mb, api.memory_mb - before_mb)
        print(f"{most_mb:.0f} MB")
    assert steps_of(client) == in_order(20)
    assert {step: text for (step, _), text in client.texts.items()} == replies
    assert most_mb < 60
