"""The queue of writes: a tenant that fills it is told so, and another's events are stored meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import group_commit
from service.core.errors import OverLimit, Unavailable
from service.core.queue_shares import QueueShares
from service.core.settings import Settings
from service.http.app import create_app
from tests.eventually import eventually
from tests.keys import bearer, make_key
from tests.listening import listening_on

EVENT = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
PLACES = 60
LEFT = PLACES // 8


async def test_a_tenant_that_fills_the_queue_shuts_out_itself_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAITING_MAX", PLACES)
    a, b = [bearer(await make_key(settings, "ingest", tenant=each)) for each in ("a", "b")]
    sql = await asyncpg.connect(settings.database_url)
    async with listening_on(create_app(settings)) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:

        async def post(key: dict[str, str]) -> httpx.Response:
            return await http.post("/events", json=EVENT, headers=key)

        async def waiting(tasks: int) -> bool:
            """Writers wait for the table: what comes behind them stays in the queue."""
            held = await sql.fetchval(
                "select count(*) from pg_locks where not granted and relation = 'events'::regclass"
            )
            return bool(held == tasks)

        async with sql.transaction():
            await sql.execute("lock table events in access exclusive mode")
            writing = []
            for n in range(2):
                writing.append(asyncio.create_task(post(a)))
                await eventually(partial(waiting, n + 1))
            of_a = [asyncio.create_task(post(a)) for _ in range(PLACES)]
            await eventually(lambda: _ended(of_a, LEFT))
            batch = await http.post("/events/batch", json=[EVENT] * 2, headers=a)
            of_b = [asyncio.create_task(post(b)) for _ in range(LEFT)]
            await eventually(lambda: _in_flight(http, 2 + PLACES))
        answers = await asyncio.gather(*of_a)
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (len(refused), Counter(answer.status_code for answer in answers)[202]) == (LEFT, PLACES - LEFT)
        assert refused[0].headers["retry-after"] == "1"
        assert (
            refused[0].json()["detail"]
            == "53 events of the tenant a wait to be stored, which is its share of the queue"
        )
        assert batch.status_code == 429
        assert {result.status_code for result in await asyncio.gather(*writing, *of_b)} == {202}
        shown = (await http.get("/metrics")).text
        assert 'callboard_over_limit_total{limit="queue"} 8.0' in shown
        assert (await post(a)).status_code == 202
    await sql.close()


async def _ended(tasks: Sequence["asyncio.Task[httpx.Response]"], count: int) -> bool:
    return sum(task.done() for task in tasks) >= count


async def _in_flight(http: httpx.AsyncClient, count: int) -> bool:
    """Besides the request that asks."""
    return f"callboard_http_requests_in_flight {count + 1}.0" in (await http.get("/metrics")).text


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=60), st.integers(5, 40))
def test_shares_by_their_rule(puts: list[tuple[str, int]], places: int) -> None:
    """Whoever is let in has its part, or had nothing before; whoever is refused would have more."""
    shares, waiting = QueueShares[str](str), list[str]()
    for caller, count in puts:
        held, callers = waiting.count(caller), len({*waiting, caller})
        share = places - places // 8 if callers == 1 else places // (callers + 1)
        fits = held == 0 or held + count <= share
        try:
            shares.take([caller] * count, waiting, places, None)
            assert fits
            waiting += [caller] * count
        except OverLimit:
            assert not fits
        if len(waiting) > places // 2:
            del waiting[: places // 4]
            shares.forget()


def test_where_postgres_is_away_it_is_no_callers_fault() -> None:
    shares = QueueShares[str](str)
    with pytest.raises(Unavailable, match="Postgres does not answer"):
        shares.take(["a"], ["a"] * 40, 40, "away")
    with pytest.raises(OverLimit, match="its share of the queue"):
        shares.take(["a"], ["a"] * 40, 40, None)
