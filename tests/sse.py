"""A client of an event's stream, and what it makes of what it hears."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
from msgspec import Struct, json


class Heard(Struct, frozen=True):
    """One server-sent event."""

    event: str
    data: dict[str, Any]
    id: str = ""


class Client(Struct):
    """Follows one event over any number of connections, as an EventSource would."""

    event_id: str
    last: str = ""
    heard: list[Heard] = []
    comments: int = 0
    texts: dict[tuple[str, str], str] = {}

    @property
    def over(self) -> bool:
        return bool(self.heard) and self.heard[-1].event == "end"

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message.data for message in self.heard if message.event == event]

    async def follow(self, http: httpx.AsyncClient, most: int | None = None) -> None:
        """One connection, left after `most` events, or when the server ends it."""
        headers = {"Last-Event-ID": self.last} if self.last else {}
        async with http.stream("GET", f"/events/{self.event_id}/stream", headers=headers) as response:
            assert response.status_code == 200, (response.status_code, await response.aread())
            async for each in self._read(response):
                self.take(each)
                most = None if most is None else most - 1
                if most == 0:
                    return

    def take(self, heard: Heard) -> None:
        self.heard.append(heard)
        self.last = heard.id or self.last
        key = (heard.data.get("step", ""), heard.data.get("call", ""))
        if heard.event == "restart":
            self.texts[key] = ""
        elif heard.event == "token":
            text = self.texts.get(key, "")
            assert heard.data["offset"] == len(text), f"{heard.data} behind {text!r}"
            self.texts[key] = text + heard.data["text"]

    async def _read(self, response: httpx.Response) -> AsyncIterator[Heard]:
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                yield Heard(fields["event"], json.decode(fields["data"]), fields.get("id", ""))
                fields = {}
