"""GET, POST and SSE over HTTP/1.1 and 2 from the client's side, until standard input ends; then what it saw.

A request counts as failed where it raises, or is answered by anything but 200 or 202; a stream, where it
is cut, or can't be followed to its `end`. While all stop, an answer that says when to come again is `held_off` instead.
"""

import asyncio
import sys
import time
from uuid import uuid4

import httpx
from msgspec import Struct, json

CLIENTS = 4
LISTENERS = 2
NAP_S = 3.0
PAUSE_S = 0.02
FAILURES_MAX = 20
RESUMED_MAX = 5


class Asked(Struct, frozen=True):
    address: str
    site: str
    key: str
    streams: bool
    all_stop: bool = False


class Seen(Struct):
    requests: int = 0
    streams: int = 0
    failed: int = 0
    held_off: int = 0
    times_s: list[float] = []
    failures: list[str] = []
    events: list[str] = []

    @property
    def slowest_s(self) -> float:
        return max(self.times_s)

    @property
    def p99_s(self) -> float:
        return sorted(self.times_s)[int(len(self.times_s) * 0.99)]

    def fails(self, what: str) -> None:
        self.failed += 1
        self.failures = [*self.failures, what][:FAILURES_MAX]


def client(asked: Asked, http2: bool) -> httpx.AsyncClient:
    headers = {"Host": asked.site, "Authorization": f"Bearer {asked.key}"}
    base = f"https://{asked.address}"
    return httpx.AsyncClient(http1=not http2, http2=http2, verify=False, base_url=base, headers=headers, timeout=20)


async def post(http: httpx.AsyncClient, seconds: float) -> httpx.Response:
    """httpx sends a body and its end apart. Over HTTP/2 the answer may come between the two, which it takes for an
    error: then the event must be there already."""
    event = {"type": "nap.wanted", "id": uuid4().hex, "data": {"seconds": seconds}}
    sni = {"sni_hostname": http.headers["Host"]}
    try:
        return await http.post("/events", json=event, extensions=sni)
    except httpx.LocalProtocolError:
        answer = await http.post("/events", json=event, extensions=sni)
        if answer.status_code == 202 and not answer.json()["duplicate"]:
            raise
        return answer


def later(answer: httpx.Response, asked: Asked) -> bool:
    return asked.all_stop and answer.status_code in (502, 503, 504) and "retry-after" in answer.headers


async def ask(http: httpx.AsyncClient, asked: Asked, seen: Seen, nth: int) -> None:
    sni = {"sni_hostname": asked.site}
    begun = time.monotonic()
    try:
        if nth % 2:
            answer = await http.get("/events?limit=1", extensions=sni)
        else:
            answer = await post(http, 0.0 if nth % 20 else 1.0)
        if later(answer, asked):
            seen.held_off += 1
        elif answer.status_code not in (200, 202):
            seen.fails(f"{answer.request.method} {answer.status_code} {answer.text[:200]}")
        elif answer.status_code == 202:
            seen.events.append(answer.json()["event_id"])
    except httpx.HTTPError as error:
        seen.fails(f"{'GET' if nth % 2 else 'POST'} {type(error).__name__} {error}")
    seen.requests += 1
    seen.times_s.append(time.monotonic() - begun)


async def listen(http: httpx.AsyncClient, asked: Asked, seen: Seen) -> None:
    """As a browser does: where an API that stops closes it in order, the next one goes on behind the last id."""
    sni = {"sni_hostname": asked.site}
    ids: list[str] = []
    try:
        accepted = await post(http, NAP_S)
        if later(accepted, asked):
            await asyncio.sleep(PAUSE_S)
            return
        event_id = accepted.json()["event_id"]
        for _ in range(RESUMED_MAX):
            headers = {"Last-Event-ID": ids[-1]} if ids else {}
            path = f"/events/{event_id}/stream"
            async with http.stream("GET", path, headers=headers, extensions=sni, timeout=60) as answer:
                lines = [line async for line in answer.aiter_lines()]
            while later(answer, asked):
                await asyncio.sleep(float(answer.headers["retry-after"]))
                async with http.stream("GET", path, headers=headers, extensions=sni, timeout=60) as answer:
                    lines = [line async for line in answer.aiter_lines()]
            ids += [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
            if answer.status_code != 200 or "event: end" in lines:
                break
        if answer.status_code != 200 or "event: end" not in lines or len(ids) != len(set(ids)):
            seen.fails(f"SSE {answer.status_code} {lines[-4:]} {ids}")
    except (httpx.HTTPError, KeyError, ValueError) as error:
        seen.fails(f"SSE {type(error).__name__} {error}")
    seen.streams += 1


async def probe(asked: Asked) -> Seen:
    seen = Seen()
    over = asyncio.Event()

    async def again(http: httpx.AsyncClient, first: int) -> None:
        nth = first
        while not over.is_set():
            await ask(http, asked, seen, nth)
            nth += 1
            await asyncio.sleep(PAUSE_S)

    async def again_listen(http: httpx.AsyncClient) -> None:
        while not over.is_set():
            await listen(http, asked, seen)

    async with client(asked, False) as h1, client(asked, True) as h2, asyncio.TaskGroup() as group:
        for http in (h1, h2):
            for first in range(CLIENTS):
                group.create_task(again(http, first))
            for _ in range(LISTENERS if asked.streams else 0):
                group.create_task(again_listen(http))
        await asyncio.to_thread(sys.stdin.buffer.read)
        over.set()
    return seen


if __name__ == "__main__":
    told = asyncio.run(probe(json.decode(sys.stdin.buffer.readline(), type=Asked)))
    sys.stdout.buffer.write(json.encode(told))
