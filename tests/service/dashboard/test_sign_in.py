"""Signing in at the page: a key becomes a session, which shows its tenant's events and ends with it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from msgspec import json

from service.access.keys import HELD_S
from service.core.servers import connect
from service.core.settings import Settings
from service.dashboard.sign_in import own_path
from tests.board import TICKET, serving
from tests.eventually import eventually
from tests.keys import TOKEN, bearer, make_key, revoke
from tests.processes import CALLBOARD, run

OWN = {"Sec-Fetch-Site": "same-origin"}


@asynccontextmanager
async def browser(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http:
        yield http


async def sign_in(http: httpx.AsyncClient, key: str, ahead: str = "/", **headers: str) -> httpx.Response:
    return await http.post("/login", data={"key": key, "next": ahead}, headers={**OWN, **headers})


async def test_a_key_opens_the_page_and_what_is_its_tenants(settings: Settings) -> None:
    acme, other = [await make_key(settings, "ingest", "read", tenant=name) for name in ("acme", "other")]
    async with browser(settings) as http:
        event = {"type": "ticket.opened", "data": TICKET, "dueat": "2099-01-01T00:00:00Z"}
        ids = [
            (await http.post("/events", json=event, headers=bearer(key))).json()["event_id"] for key in (acme, other)
        ]
        response = await http.get("/?status=scheduled&key=a%26b")
        assert response.status_code == 303
        form = await http.get(response.headers["location"])
        ahead = re.search(r'name="next" value="([^"]*)"', form.text)
        assert ahead is not None
        assert (form.status_code, ahead[1]) == (200, "/?status=scheduled&amp;key=a%26b")

        answer = await sign_in(http, acme, "/?status=scheduled")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?status=scheduled")
        told = answer.headers["set-cookie"]
        assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(told.split("; "))
        assert acme[11:] not in told, "a browser holds no key"

        page = await http.get("/")
        assert page.status_code == 200
        assert (ids[0] in page.text, ids[1] in page.text) == (True, False)
        assert f"acme <code>{acme[:11]}</code>" in page.text
        assert acme[11:] not in page.text
        assert re.search(r"<b>1</b> scheduled", page.text), "the counts are the tenant's too"
        assert [(await http.get(f"/ui/events/{event_id}")).status_code for event_id in ids] == [200, 404]
        assert [(await http.get(f"/events/{event_id}")).status_code for event_id in ids] == [200, 404]
        assert (await http.post(f"/events/{ids[0]}/cancel", headers=OWN)).status_code == 403, "the key may not operate"


async def test_out_is_out(settings: Settings) -> None:
    key = await make_key(settings, "read")
    async with browser(settings) as http:
        await sign_in(http, key)
        kept = dict(http.cookies)
        assert (await http.get("/")).status_code == 200
        assert (await http.post("/logout", headers=OWN)).headers["location"] == "/login"
        assert not http.cookies
        assert (await http.get("/", headers={"Cookie": f"callboard={kept['callboard']}"})).status_code == 303
        assert (await http.get("/", headers=bearer(key))).status_code == 200


@pytest.mark.usefixtures("briefly")
async def test_a_session_ends_with_its_key(settings: Settings) -> None:
    key = await make_key(settings, "read")
    async with browser(settings) as http:
        await sign_in(http, key)
        assert (await http.get("/")).status_code == 200
        await revoke(settings, key)

        async def out() -> bool:
            return (await http.get("/")).status_code == 303

        assert await eventually(out, HELD_S + 1)


@pytest.mark.parametrize(
    ("scope", "status", "why"), [("", 401, "no key that is valid"), ("ingest", 403, "may not read")]
)
async def test_who_is_not_let_in(settings: Settings, scope: str, status: int, why: str) -> None:
    key = await make_key(settings, scope or "read")
    async with browser(settings) as http:
        answer = await sign_in(http, key if scope else key[:-1], '/"><b>')
        assert answer.status_code == status
        assert why in answer.text
        assert "set-cookie" not in answer.headers
        assert key[11:-1] not in answer.text
        assert '"><b>' not in answer.text


async def test_behind_tls_the_cookie_is_for_this_host_alone(settings: Settings) -> None:
    key = await make_key(settings, "read")
    async with browser(settings) as http:
        told = (await sign_in(http, key, **{"X-Forwarded-Proto": "https"})).headers["set-cookie"]
        name, token = told.partition(";")[0].split("=")
        assert name == "__Host-callboard"
        assert {"Secure", "HttpOnly", "Path=/"} <= set(told.split("; "))
        assert "domain" not in told.lower()
        http.cookies.clear()
        for cookie, status in ((name, 200), ("callboard", 303)):
            asked = {"X-Forwarded-Proto": "https", "Cookie": f"{cookie}={token}"}
            assert (await http.get("/", headers=asked)).status_code == status, "no other cookie counts there"


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}]
)
async def test_another_sites_page_can_do_nothing(settings: Settings, headers: dict[str, str]) -> None:
    key = await make_key(settings, "admin")
    async with browser(settings) as http:
        await sign_in(http, key)
        assert (await http.post("/login", data={"key": key}, headers=headers)).status_code == 403
        for method, path in (("POST", "/logout"), ("POST", "/events"), ("POST", "/dead-letters/replay")):
            answer = await http.request(method, path, json={"reason": "deadline"}, headers=headers)
            assert (answer.status_code, answer.json()["detail"][:19]) == (403, "another site's page"), path
        assert (await http.get("/")).status_code == 200, "still signed in"
        answer = await http.post(
            "/dead-letters/replay", json={"reason": "deadline"}, headers={**headers, **bearer(key)}
        )
        assert answer.status_code == 200, "a page can't send a key that it has not"


async def test_a_session_signs_nobody_in_and_is_no_bearers_key(settings: Settings) -> None:
    """Else it would renew itself for ever; nor is a key taken from a cookie."""
    key = await make_key(settings, "admin")
    async with browser(settings) as http:
        token = (await sign_in(http, key)).headers["set-cookie"].partition(";")[0].split("=")[1]
        http.cookies.clear()
        assert (await sign_in(http, token)).status_code == 401
        assert (await http.get("/events", headers=bearer(token))).status_code == 401
        assert (await http.get("/events", headers={"Cookie": f"callboard={key}"})).status_code == 401
        assert (await http.get("/events", headers={"Cookie": f"callboard={token}"})).status_code == 200


async def test_a_session_ends_when_it_lies_idle(settings: Settings) -> None:
    key = await make_key(settings, "read")
    connection = await connect(settings, "test")
    try:
        async with browser(settings) as http:
            await sign_in(http, key)
            await connection.execute("update sessions set used_at = used_at - interval '11 hours 59 minutes'")
            assert (await http.get("/")).status_code == 200
            assert await connection.fetchval("select used_at > clock_timestamp() - interval '1 minute' from sessions")
            await connection.execute("update sessions set used_at = used_at - interval '12 hours 1 minute'")

            async def is_out() -> bool:
                return (await http.get("/")).status_code == 303

            await eventually(is_out, HELD_S + 5)
            await sign_in(http, key)
            assert await connection.fetchval("select count(*) from sessions") == 1, "those that are over are swept away"
    finally:
        await connection.close()


async def test_all_sessions_of_a_key_can_be_ended(settings: Settings) -> None:
    key, other = [await make_key(settings, "read") for _ in range(2)]
    async with browser(settings) as http, browser(settings) as second, browser(settings) as others:
        for each, with_key in ((http, key), (second, key), (others, other)):
            await sign_in(each, with_key)
        environ = {"DATABASE_URL": settings.database_url, "CALLBOARD_DATA_DIR": settings.data_dir}
        done = await asyncio.to_thread(run, (*CALLBOARD, "keys", "sign-out", key), environ)
        assert (done.returncode, done.stdout) == (0, f"2 sessions of {key[:11]} are ended\n")

        async def are_out() -> bool:
            return [(await each.get("/")).status_code for each in (http, second, others)] == [303, 303, 200]

        await eventually(are_out, HELD_S + 5)
        assert (await http.get("/events", headers=bearer(key))).status_code == 200, "the key itself goes on"
    connection = await connect(settings, "test")
    try:
        row = await connection.fetchrow("select action, detail from operations order by at desc limit 1")
    finally:
        await connection.close()
    assert row is not None
    assert (row["action"], json.decode(row["detail"])) == ("end_sessions", {"prefix": key[:11], "count": 2})


async def test_a_proxy_may_call_its_own_side_wss(settings: Settings) -> None:
    key = await make_key(settings, "read")
    async with browser(settings) as http:
        answer = await sign_in(http, key, **{"X-Forwarded-Proto": "wss"})
        assert answer.headers["set-cookie"].startswith("__Host-callboard=")
        assert "Secure" in answer.headers["set-cookie"]
        assert (await http.get("/events", headers={"X-Forwarded-Proto": "wss"})).status_code == 401


async def test_the_address_that_up_prints_signs_in(settings: Settings) -> None:
    """Once: what goes on from there, to other sites too, has no token in it."""
    async with browser(settings) as http:
        assert (await http.get("/")).headers["location"] == "/login?next=%2F"
        answer = await http.get(f"/ui/events/7?x=a%26b&token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/events/7?x=a%26b")
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert TOKEN not in answer.headers["set-cookie"] + answer.text
        page = await http.get("/")
        assert page.status_code == 200
        assert "Sign out" in page.text
        assert TOKEN not in page.text
        secret = http.cookies["callboard"]
        await http.post("/logout")
        assert (await http.get("/", headers={"Cookie": f"callboard={secret}"})).status_code == 303
        for wrong in ("", TOKEN[:-1], f"{TOKEN}x", "cb_x", secret):
            answer = await http.get("/", params={"token": wrong})
            assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2F"), wrong
            assert "set-cookie" not in answer.headers
        assert (await sign_in(http, TOKEN)).headers["location"] == "/", "typed in it does as well"
        assert (await http.get("/events")).status_code == 200


@pytest.mark.parametrize(
    ("told", "ahead"),
    [
        ("/ui/events/1?x=1", "/ui/events/1?x=1"),
        *(
            (told, "/")
            for told in ("", "//evil.example", "/\\evil.example", "https://evil.example", "/\r\nX: y", "evil")
        ),
    ],
)
def test_the_way_on_leads_nowhere_else(told: str, ahead: str) -> None:
    assert own_path(told) == ahead
