"""Callers that mean no good, as a program of its own: `python -m tests.attacks PORT KEY SECONDS NAME…`.

SITE@ADDRESS:PORT in the place of PORT is a proxy that speaks TLS. At the end it prints what they were answered, as
JSON: how often by attack and status.
"""

import asyncio
import os
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from msgspec import Struct, json

ATTACKERS: Final = 20
HOLD_S: Final = 3.0
PIECE: Final = b"X-Much: " + b"a" * 1_000 + b"\r\n"
EVENT: Final = json.encode({"type": "message.labelled", "data": {"text": "a" * 4_000, "label": "b"}})
BODY: Final = b"[" + b",".join([EVENT] * 900) + b"]"  # 3.7 MB
UNHEARD_OF: Final = BODY.replace(b"message.labelled", b"nobody.knows.it")
LISTS: Final = (
    "/events?limit=500",
    "/dead-letters?limit=500",
    "/?limit=500",
    "/events/?limit=500&since=2020-01-01T00:00:00Z",
)


def _search(values: int) -> bytes:
    """A hundred comparisons with so many values each."""
    where = {"and": [{f"field{n}": {"in": [f"value {m}" for m in range(values)]}} for n in range(100)]}
    return json.encode({"query": "refund " * 500, "mode": "hybrid", "k": 100, "filter": where})


SEARCHES: Final = (_search(400), _search(10))  # one that is refused as it comes, and the most that is looked for


class Target(Struct, frozen=True):
    """`site` is where TLS is spoken, to a proxy."""

    address: str
    port: int
    site: str
    key: str
    heard: Counter[str]

    def head(self, method: str, path: str, *lines: str) -> bytes:
        host = f"Host: {self.site or 'localhost'}"
        head_lines = (f"{method} {path} HTTP/1.1", host, f"Authorization: Bearer {self.key}", *lines)
        return "".join(f"{line}\r\n" for line in head_lines).encode()


Attack = Callable[[Target, int], Awaitable[None]]

TLS: Final = ssl.create_default_context()
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    plain = socket.socket()
    plain.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096
    )  # who does not read shall not be read for by the kernel
    plain.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(plain, (target.address, target.port))
    except OSError:
        plain.close()
        raise
    tls, site = (TLS, target.site) if target.site else (None, None)
    reader, writer = await asyncio.open_connection(sock=plain, limit=4_096, ssl=tls, server_hostname=site)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said(target: Target, raw: bytes) -> None:
    """Sent, and read to the end; the status is counted."""
    async with connected(target) as (reader, writer):
        writer.write(raw)
        line = await reader.readline()
        while await reader.read(1 << 16):
            pass
        target.heard[line[9:12].decode() or "closed"] += 1


async def held(target: Target, many: int, raw: bytes) -> None:
    """On so many connections at once, and nothing is read."""
    async with AsyncExitStack() as stack:
        for _ in range(many):
            reader, writer = await stack.enter_async_context(connected(target))
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(raw)
        await asyncio.sleep(HOLD_S)
        target.heard["held"] += many


async def promised(target: Target, n: int) -> None:
    """A2: bodies that are promised and don't come, and those that come but for their end."""
    head = target.head("POST", "/events/batch", "Content-Type: application/json", f"Content-Length: {len(BODY)}")
    request = head + b"Connection: close\r\n\r\n"
    if n % 3 == 0:
        await held(target, 40, request)
    elif n % 3 == 1:
        await held(target, 5, request + BODY[:-1])
    else:
        await said(target, request + BODY[:-1] + b"!")


async def lists(target: Target, n: int) -> None:
    """A4: the largest answers there are, read and not read."""
    head = target.head("GET", LISTS[n // 2 % len(LISTS)], "Connection: keep-alive" if n % 2 else "Connection: close")
    if n % 2:
        await held(target, 10, (head + b"\r\n") * 3)
    else:
        await said(target, head + b"\r\n")


async def heads(target: Target, n: int) -> None:
    """A5: heads without end, half ones, and thousands at once."""
    if n % 3 == 0:
        async with connected(target) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n")
            for _ in range(5_000):
                writer.write(PIECE)
                await writer.drain()
            target.heard[(await reader.readline())[9:12].decode() or "closed"] += 1
    elif n % 3 == 1:
        await held(target, 60, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Half:")
    else:
        await held(target, 5, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 8_000)


async def searches(target: Target, n: int) -> None:
    """A7: as it was reported, and in turn the most that the bounds on a filter leave."""
    search = SEARCHES[n % len(SEARCHES)]
    head_lines = ("Content-Type: application/json", f"Content-Length: {len(search)}", "Connection: close")
    await said(target, target.head("POST", "/collections/mine/search", *head_lines) + b"\r\n" + search)


async def batches(target: Target, n: int) -> None:
    """The largest there are, of events that count and that nobody stores; each third is one that no proxy lets in."""
    size = len(UNHEARD_OF) if n % 3 else 100_000_000
    head_lines = ("Content-Type: application/json", f"Content-Length: {size}", "Connection: close")
    await said(target, target.head("POST", "/events/batch", *head_lines) + b"\r\n" + (UNHEARD_OF if n % 3 else b""))


ATTACKS: Final[dict[str, Attack]] = {"A2": promised, "A4": lists, "A5": heads, "A7": searches}
WITH_A_RATE: Final[dict[str, Attack]] = {"batches": batches}


async def attack(target: Target, name: str, n: int) -> None:
    while True:
        with suppress(OSError, ValueError, asyncio.IncompleteReadError):
            await (ATTACKS | WITH_A_RATE)[name](target, n)
        await asyncio.sleep(0)
        n += 1


async def main(where: str, key: str, duration_s: float, names: list[str]) -> None:
    site, _, rest = where.rpartition("@")
    address, _, port = rest.rpartition(":")
    targets = {name: Target(address or "127.0.0.1", int(port), site, key, Counter()) for name in names}
    with suppress(TimeoutError):
        async with asyncio.timeout(duration_s), asyncio.TaskGroup() as group:
            for n in range(ATTACKERS):
                name = names[n % len(names)]
                group.create_task(attack(targets[name], name, n // len(names)))
    print(json.encode({name: dict(target.heard) for name, target in targets.items()}).decode(), flush=True)


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # what is tried are bounds, not who has the processor
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
