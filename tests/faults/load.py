"""The client: it sends events until it has a 202 for each, and writes down every one."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import httpx
from msgspec import Struct

from tests.eventually import eventually
from tests.keys import AT_HOME

if TYPE_CHECKING:
    from tests.faults.rig import Rig

TRY_S: Final = 5.0
GIVE_UP_S: Final = 180.0
AGAIN: Final = (500, 502, 503, 504)


class Sent(Struct):
    """An event as its sender knows it. `answered_at` is when the 202 was there; `codes` are all answers, 0 for none."""

    id: str
    kind: str
    token: str
    key: str | None
    sent_at: float
    codes: list[int]
    event_id: str = ""
    answered_at: float = 0.0
    duplicate: bool = False


class Load:
    """Sends from ids of its own, so that a try whose answer was lost is the same event when it comes again."""

    def __init__(self, rig: "Rig") -> None:
        self._rig: Final = rig
        self.log: Final[list[Sent]] = []
        self._enough: Final = asyncio.Event()
        self.http: Final = httpx.AsyncClient(headers=AT_HOME, timeout=TRY_S, limits=httpx.Limits(max_connections=200))

    @property
    def taken(self) -> list[Sent]:
        """Those with a 202."""
        return [sending for sending in self.log if sending.event_id]

    async def send(self, kind: str, key: str | None = None, **data: Any) -> Sent:
        """One event, until its 202; a 5xx, a lost connection and silence are tried again, at the next API."""
        number = len(self.log)
        sent = Sent(f"load-{number}", kind, f"token-{number}", key, time.time(), [])
        self.log.append(sent)
        body = {"type": kind, "id": sent.id, "source": "/load", "data": {"token": sent.token, **data}}
        if key is not None:
            body["partitionkey"] = key
        await self._until_taken(sent, body)
        return sent

    async def burst(
        self, count: int, kinds: Sequence[str], keys: int = 0, senders: int = 20, every_s: float = 0.0, **data: Any
    ) -> None:
        """`count` events of kinds by turns. With `keys`, half of them have one of so many; those of one key follow each
        other, each after the 202 of the one before. `every_s`: the mean pause of each sender."""
        draws = self._rig.random
        plan = [
            (kinds[n % len(kinds)], f"key-{n % keys}" if keys and draws.random() < 0.5 else None) for n in range(count)
        ]
        lanes: dict[str, list[tuple[str, str | None]]] = {}
        for n, (kind, key) in enumerate(plan):
            lanes.setdefault(key or f"lane {n % senders}", []).append((kind, key))

        async def lane(items: list[tuple[str, str | None]]) -> None:
            for kind, key in items:
                await self.send(kind, key, **data)
                if every_s:
                    await asyncio.sleep(draws.expovariate(1 / every_s))

        async with asyncio.TaskGroup() as group:
            for items in lanes.values():
                group.create_task(lane(items))

    async def flow(self, kinds: Sequence[str], keys: int = 0, senders: int = 10, every_s: float = 0.5) -> None:
        """Events of random kinds until `enough()`: `senders` send without a key, one more sends for each of `keys`.

        Each pauses for about `every_s` behind every 202.
        """

        async def lane(key: str | None) -> None:
            while not self._enough.is_set():
                await self.send(self._rig.random.choice(kinds), key)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rig.random.uniform(0, 2 * every_s)):
                        await self._enough.wait()

        self._enough.clear()
        async with asyncio.TaskGroup() as group:
            for n in range(senders + keys):
                group.create_task(lane(f"key-{n}" if n < keys else None))

    def enough(self) -> None:
        self._enough.set()

    async def accepted(self, count: int, timeout_s: float = 120.0) -> None:
        """Until so many have their 202."""

        async def fact() -> bool:
            return len(self.taken) >= count

        await eventually(fact, timeout_s)

    async def _until_taken(self, sent: Sent, body: dict[str, Any]) -> None:
        give_up_at = time.time() + GIVE_UP_S
        while time.time() < give_up_at:
            answer = await self._try(body)
            sent.codes.append(answer.status_code if answer is not None else 0)
            if answer is not None and answer.status_code == 202:
                told = answer.json()
                sent.event_id, sent.duplicate, sent.answered_at = told["event_id"], told["duplicate"], time.time()
                return
            if answer is not None and answer.status_code == 503:
                assert "retry-after" in answer.headers, f"{sent.id}: a 503 that does not say when to come again"
            if answer is not None and answer.status_code not in AGAIN:
                raise AssertionError(f"{sent.id}: {answer.status_code} {answer.text}")
            await asyncio.sleep(self._rig.random.uniform(0.02, 0.3))
        raise AssertionError(f"{sent.id} found nobody to take it for {GIVE_UP_S:g} s: {sent.codes[-20:]}")

    async def _try(self, body: dict[str, Any]) -> httpx.Response | None:
        apis = self._rig.apis
        if not apis:
            return None
        try:
            return await self.http.post(f"{self._rig.random.choice(apis).url}/events", json=body)
        except httpx.TransportError:
            return None
