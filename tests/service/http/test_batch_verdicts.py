"""A batch says of each event what a POST of its own would: whatever is mixed, however it is sent."""

import json as standard
from collections.abc import AsyncIterator
from json import JSONDecodeError
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from schemas.text import BadEvent, TooDeep, check
from service.core.settings import Settings
from tests.board import serving
from tests.keys import AT_HOME, bearer, make_key
from tests.service.http.test_batch import BROKEN, JSON, LINES, POISON, labelled, post
from tests.service.http.test_hostile import INSERTED, MEMBERS, VALUES, altered, spoiled

ITEMS = st.lists(
    st.binary(min_size=1, max_size=50)
    | INSERTED.map(spoiled)
    | st.dictionaries(MEMBERS, VALUES, min_size=1, max_size=3).map(altered)
    | st.builds(lambda n, subject: labelled(id=n, subject=subject), st.sampled_from("12"), st.sampled_from("ab"))
    | st.sampled_from([wrong for wrong, _ in (POISON | BROKEN).values()]),
    min_size=1,
    max_size=10,
)


def fits_an_array(item: bytes) -> bool:
    """JSON by its grammar alone, read by another reader, and not too deep."""
    try:
        standard.loads(item.decode("utf-8", "surrogateescape"), parse_int=str, parse_constant=no_json)
        check(item)
    except (TooDeep, RecursionError, JSONDecodeError):
        return False
    except BadEvent:
        pass
    return True


def no_json(name: str) -> None:
    raise JSONDecodeError(name, "", 0)


class Tenant:
    """Its own events only: `seen` are their ids, in the order in which they came."""

    def __init__(self, http: httpx.AsyncClient, key: str) -> None:
        self._http = http
        self._headers = bearer(key)
        self.seen: list[str] = []

    async def singly(self, items: list[bytes]) -> list[Any]:
        headers = {"Content-Type": JSON, **self._headers}
        return [
            self._verdict((await self._http.post("/events", content=item, headers=headers)).json()) for item in items
        ]

    async def together(self, items: list[bytes], media: str) -> list[Any]:
        response = await post(self._http, items, media, **self._headers)
        body = response.json()
        assert response.status_code == (207 if body["rejected"] else 202)
        assert body["accepted"] + body["rejected"] == len(items)
        assert [item.pop("index") for item in body["items"]] == list(range(len(items)))
        return [self._verdict(item.get("error", item)) for item in body["items"]]

    def _verdict(self, told: dict[str, Any]) -> dict[str, Any]:
        if "event_id" not in told:
            return {**told, "instance": ""}
        event_id = told["event_id"]
        self.seen += [] if event_id in self.seen else [event_id]
        return {**told, "event_id": self.seen.index(event_id), "id": told["id"].replace(event_id, "")}


@pytest.fixture
async def tenants(settings: Settings) -> AsyncIterator[list[Tenant]]:
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        yield [Tenant(http, await make_key(settings, "ingest", tenant=name)) for name in "abcd"]


@given(ITEMS)
@examples(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_any_mixture_has_the_verdicts_of_single_ones(tenants: list[Tenant], items: list[bytes]) -> None:
    """Each tenant hears the same history, so what was sent before is sent before for all."""
    one, many, few, some = tenants
    lines = [item.strip() for item in items if item.strip() and b"\n" not in item.strip()]
    assert await many.together(lines, LINES) == await one.singly(lines)
    whole = [item for item in items if fits_an_array(item)]
    assert await some.together(whole, JSON) == await few.singly(whole)
