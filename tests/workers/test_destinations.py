"""Where an event's address may lead `run.web`: no form of an inside address that got through elsewhere does here."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from msgspec import json
from msgspec.structs import replace

from schemas import Event
from service.cli.parts import environment_of
from service.core.destinations import ON_THIS_MACHINE, Allowed, allowed
from service.core.errors import Outage, Reject
from service.core.settings import Settings
from service.embedded import on_this_machine, running
from tests.board import board_on
from tests.programs import program_of
from tests.workers.test_web import always, server
from workers.kit import Pipeline, Run
from workers.nodes.pager import Pager
from workers.web import Reply, open_web

# From public reports: LibreChat GHSA-w5r7-4f94-vp4c (mapped addresses in hexadecimal), Crawl4AI (NAT64, 6to4,
# compatible, unspecified), Open WebUI CVE-2026-45400 (two readers of one address), ssrfcheck GHSA-j4rj-2jr5-m439.
LOOPBACKS: Final = (
    *("127.0.0.1", "127.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.0x0.0x0.0x1", "017700000001", "0"),
    *("0.0.0.0", "localhost", "LOCALHOST", "127.0.0.1.", "127。0。0。1", "example.com@127.0.0.1"),
    *("example.com\\@127.0.0.1", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("[0:0:0:0:0:ffff:7f00:0001]", "[::127.0.0.1]", "[::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]"),
    *("[2002:7f00:1::]", "[::ffff:0:127.0.0.1]"),
)
# IANA's registries of special-purpose addresses (iana-ipv4-special-registry, iana-ipv6-special-registry) and multicast:
# one of each that is not globally reachable. And where clouds answer inside: AWS, GCP, Azure, ECS, Alibaba, Oracle.
INSIDE: Final = (
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.16.0.1", "172.31.255.255", "192.0.0.8"),
    *("192.0.2.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "240.0.0.1", "255.255.255.255"),
    *("224.0.0.1", "239.255.255.250", "::", "::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "100::1"),
    *("2001::1", "2001:2::1", "2001:db8::1", "2002:c0a8:1::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1"),
    *("fe80::1%lo", "fec0::1", "ff02::1", "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192"),
    *("168.63.129.16", "169.254.170.2", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe"),
    *("2002:a9fe:a9fe::", "::a9fe:a9fe"),
)
OUTSIDE: Final = ("1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1")


async def post(url: str, allow: Allowed) -> Reply:
    async with open_web(allow) as web:
        return await web.post(url, json={}, idempotency_key="k", timeout_s=2)


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server of the inside: its port, and what was sent there."""
    seen: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        seen.append(request)
        return await always("200 OK")(request)

    async with server(answer) as url:
        yield httpx.URL(url).port or 0, seen


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_no_spelling_of_loopback_gets_through(host: str) -> None:
    async with listening() as (port, seen):
        with pytest.raises(Reject) as caught:
            await post(f"http://{host}:{port}/", Allowed())
    assert not seen
    assert "CALLBOARD_WEB_ALLOW" in str(caught.value) or "Invalid" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "localhost"])
async def test_what_the_operator_allows_gets_through(host: str) -> None:
    async with listening() as (port, seen):
        for allow in (allowed(ON_THIS_MACHINE), allowed("", f"http://{host}:{port}/hook")):
            assert (await post(f"http://{host}:{port}/", allow)).status == 200
        with pytest.raises(Reject, match="of the inside"):
            await post(f"http://{host}:{port}/", allowed("10.0.0.0/8,hooks.internal", f"http://{host}:{port + 1}/"))
    assert len(seen) == 2


def test_what_is_inside_and_what_is_not() -> None:
    assert [address for address in INSIDE if Allowed().address(address)] == []
    assert [step for step in OUTSIDE if not Allowed().address(step)] == []
    ours = allowed("10.0.0.0/8, fd12::/16")
    assert [
        ours.address(address) for address in ("10.9.9.9", "::ffff:10.9.9.9", "64:ff9b::a00:1", "fd12::9", "11.0.0.1")
    ] == [True] * 5
    assert [ours.address(address) for address in ("192.168.0.1", "127.0.0.1", "fd13::1")] == [False] * 3
    named = allowed("Hooks.Internal, *.corp.example", "https://pager.lan/x", "http://10.0.0.1:8080")
    names = ("hooks.internal", "HOOKS.internal.", "a.corp.example", "a.b.corp.example", "pager.lan")
    assert [named.host(name, 443) for name in names] == [True] * 5
    others = ("corp.example", "evilcorp.example", "hooks.internal.evil.example", "x.hooks.internal")
    assert [named.host(other, 443) for other in others] == [False] * 4
    assert [named.host("pager.lan", 80), named.host("10.0.0.1", 8080), named.host("10.0.0.1", 6379)] == [
        False,
        True,
        False,
    ]


class Names:
    """The name servers of a stranger: the first answer to a name, then the next."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.answers = list(answers)

    async def getaddrinfo(self, _: str, port: int, **__: Any) -> list[Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(0, 0, 0, "", (address, port)) for address in answer]


async def test_a_name_leads_where_it_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the inside, or first to the Internet and then inside (DNS rebinding), or to both at once."""
    loop = asyncio.get_running_loop()
    async with listening() as (port, seen):
        for answer in (("127.0.0.1",), ("::ffff:127.0.0.1",), ("127.0.0.1", "::1")):
            monkeypatch.setattr(loop, "getaddrinfo", Names(answer).getaddrinfo, raising=False)
            with pytest.raises(Reject, match=r"rebind\.example is an address of the inside"):
                await post(f"http://rebind.example:{port}/", Allowed())
        # 192.0.2.1 is documentation's, so that nothing leaves this machine; it stands for a public one here.
        public = allowed("192.0.2.0/24")
        for names in (Names(("192.0.2.1",), ("127.0.0.1",)), Names(("127.0.0.1", "192.0.2.1"))):
            monkeypatch.setattr(loop, "getaddrinfo", names.getaddrinfo, raising=False)
            async with open_web(public) as web:
                with pytest.raises(Outage):
                    await web.post(f"http://rebind.example:{port}/", json={}, idempotency_key="k", timeout_s=0.3)
        assert not seen
        monkeypatch.setattr(loop, "getaddrinfo", Names(("192.0.2.1", "127.0.0.1")).getaddrinfo, raising=False)
        both = allowed("192.0.2.0/24,127.0.0.0/8")
        assert (await post(f"http://two.example:{port}/", both)).status == 200, "the next one, where the first is away"


async def test_a_name_that_leads_nowhere_is_waited_for() -> None:
    with pytest.raises(Outage, match="its name leads nowhere"):
        await post("http://nobody.invalid/", Allowed())


async def test_a_redirect_to_the_inside_is_not_followed() -> None:
    async with (
        listening() as (port, seen),
        server(always("307 Away", headers=f"location: http://127.0.0.1:{port}/\r\n")) as url,
    ):
        with pytest.raises(Reject, match="HTTP 307"):
            await post(url, allowed(ON_THIS_MACHINE))
    assert not seen


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "0xa9fea9fe", "[::ffff:a9fe:a9fe]"])
async def test_a_proxy_is_not_asked_for_the_inside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as (port, seen):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(Reject, match="of the inside"):
            await post(f"http://{host}/latest/meta-data/", Allowed())
        assert not seen
        assert (await post("http://example.com/", Allowed())).status == 200, "the proxy itself is the operator's"
    assert seen[0].startswith(b"POST http://example.com/")


class Called(Event, tag="called", frozen=True):
    url: str


async def call(run: Run, event: Called) -> int:
    return (await run.web.post(event.url, {})).status


async def test_an_event_that_leads_inside_is_dead_at_once(settings: Settings) -> None:
    program = program_of(settings, called=Pipeline(on=Called, flow=[call]))
    async with listening() as (port, seen), listening() as (pager, _):
        page_url = f"http://127.0.0.1:{pager}/"
        program = replace(program, own_settings={Pager: Pager(page_url=page_url)})
        async with board_on(replace(settings, web_allow=""), program) as board:
            event = await board.ended(await board.send("called", {"url": f"http://127.0.0.1:{port}/"}))
            assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "Reject")
            assert "127.0.0.1 is an address of the inside" in event["error"]["message"]
            assert not seen
            assert (await board.ended(await board.send("called", {"url": page_url})))["result"] == 200


def test_on_a_developers_machine_loopback_is_allowed(tmp_path: Path) -> None:
    """What `callboard up` starts there; not where it listens to others."""
    ours = Settings(data_dir=str(tmp_path), web_allow="*.corp.example")
    assert on_this_machine(ours).web_allow == f"*.corp.example,{ON_THIS_MACHINE}"
    assert on_this_machine(replace(ours, host="0.0.0.0")).web_allow == "*.corp.example"
    assert environment_of(ours)["CALLBOARD_WEB_ALLOW"] == f"*.corp.example,{ON_THIS_MACHINE}"
    assert (allowed(ON_THIS_MACHINE).address("127.0.0.1"), allowed(ON_THIS_MACHINE).address("10.0.0.1")) == (
        True,
        False,
    )


def test_so_it_is_for_a_worker_that_takes_its_servers_from_up(tmp_path: Path) -> None:
    urls = {"database_url": "postgresql://127.0.0.1/x", "redis_url": "redis://127.0.0.1"}
    own = Settings(data_dir=str(tmp_path), database_url=urls["database_url"], redis_url=urls["redis_url"])
    assert running(own).web_allow == ""
    (tmp_path / "addresses.json").write_bytes(json.encode({**urls, "pid": os.getpid()}))
    assert running(Settings(data_dir=str(tmp_path))).web_allow == ON_THIS_MACHINE
