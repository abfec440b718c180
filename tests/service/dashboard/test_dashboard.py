"""The pages: what a person sees of an event, and what a browser is allowed to do with it."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from uuid import uuid4

import httpx
import pytest
from msgspec.structs import replace

from service.core.settings import Settings
from service.dashboard.look import ago, dollars, lasting, pretty
from service.dashboard.waterfall import Row, scale, waterfall
from service.http import view
from tests.board import TICKET, Board, serving
from tests.keys import AT_HOME

NASTY = "<script>alert(1)</script>"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_the_list_shows_an_event_and_its_page_the_steps(board: Board) -> None:
    event_id = await board.send("ticket.opened", TICKET, partitionkey="customer-7", id="mail-1")
    event = await board.ended(event_id)
    assert event["status"] == "succeeded", event["error"]

    listed = await _page(board, "/")
    assert f'href="/ui/events/{event_id}"' in listed
    assert all(told in listed for told in ("ticket.opened", "customer-7", "mail-1", "succeeded"))
    assert "A worker simulates the models' answers." in listed

    shown = await _page(board, f"/ui/events/{event_id}")
    for moment in event["timeline"]:
        told = moment["step"] if moment["what"] == "step" else None
        if moment["what"] == "call":
            told = f"{moment['detail']['prompt']}@{moment['detail']['version']}"
        assert told is None or told in shown
    assert f"{event['attempts']} of {event['attempts_max']}" in shown
    assert "&#34;intent&#34;" in shown
    assert "&#34;Charged twice&#34;" in shown
    assert "simulated</small>" in shown
    assert "data-live-ms" not in shown, "an ended event changes no more"


async def test_a_waiting_event_renews_itself_with_and_without_a_script(board: Board) -> None:
    event_id = await board.send("ticket.opened", TICKET, dueat="2099-01-01T00:00:00Z")
    shown = await _page(board, f"/ui/events/{event_id}")
    assert "scheduled" in shown
    assert "data-live-ms" in shown
    assert '<noscript><meta http-equiv="refresh"' in shown
    listed = await _page(board, "/")
    assert re.search(r"<b>1</b> scheduled", listed)
    assert "due in" in listed


async def test_what_was_said_is_never_markup(board: Board) -> None:
    ticket = {"ticket_id": NASTY, "subject": NASTY, "body": NASTY}
    quoted = f'"><b x="{NASTY}'
    event_id = await board.send("ticket.opened", ticket, partitionkey=quoted, id=NASTY, subject=NASTY, team=NASTY)
    await board.ended(event_id)
    for path in ("/", f"/ui/events/{event_id}", "/ui/events/<script>alert(1)"):
        text = (await board.http.get(path)).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
        assert '"><b x=' not in text
    filtered = (await board.http.get("/", params={"key": quoted, "type": NASTY})).text
    assert "<script>alert" not in filtered
    assert '"><b x=' not in filtered


async def test_a_browser_may_load_nothing_but_our_own_files(board: Board) -> None:
    event_id = await board.send("ticket.opened", TICKET)
    await board.ended(event_id)
    for path in ("/", f"/ui/events/{event_id}", f"/ui/events/{uuid4()}"):
        response = await board.http.get(path)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-store"
        assert not re.search(r"\sstyle=|\son[a-z]+=|<script>|<style", response.text), "the policy would block it"
        for address in re.findall(r'(?:src|<link[^>]* href)="([^"]+)"', response.text):
            asset = await board.http.get(unescape(address))
            assert asset.status_code == 200
            assert "immutable" in asset.headers["cache-control"]


async def test_every_link_leads_somewhere(board: Board) -> None:
    await board.ended(await board.send("ticket.opened", TICKET, partitionkey="a/b c&d=é"))
    seen: set[str] = set()
    ahead = ["/"]
    while ahead:
        path = ahead.pop()
        response = await board.http.get(path)
        assert response.status_code == 200, path
        seen.add(path)
        links = {unescape(match) for match in re.findall(r'<a [^>]*href="([^"]+)"', response.text)}
        ahead += sorted(links - seen - set(ahead))
    assert any(path.startswith("/?key=") for path in seen)
    assert any(path.startswith("/events/") for path in seen)


async def test_an_unknown_event_is_a_page_that_says_so(board: Board) -> None:
    for event_id in (uuid4(), "nonsense", "%00"):
        response = await board.http.get(f"/ui/events/{event_id}")
        assert response.status_code == 404
        assert "No such event" in response.text


async def test_the_line_told_to_a_newcomer_works(board: Board) -> None:
    text = unescape(await _page(board, "/"))
    assert "No events yet" in text
    match = re.search(
        r"""curl -sS (\S+) -H 'Content-Type: (\S+)' -H "Authorization: Bearer ([^"]+)" -d '([^']+)'""", text
    )
    assert match is not None
    url, media_type, key, body = match.groups()
    assert key == f"$(cat {board.settings.data_path}/token)"
    response = await board.http.post(url, content=body, headers={"Content-Type": media_type})
    assert response.status_code == 202, response.text
    assert (await board.ended(response.json()["event_id"]))["status"] == "succeeded"


async def test_filters_and_older_events(board: Board) -> None:
    sent = [await board.send("ticket.opened", TICKET, partitionkey=key) for key in ("a", "b", "b")]
    for each in sent:
        await board.ended(each)
    first = await _page(board, "/?limit=2&type=ticket.opened&status=&key=")
    assert _listed(first) == [sent[2], sent[1]]
    older = re.search(r'class="older" href="([^"]+)"', first)
    assert older is not None
    assert _listed(await _page(board, unescape(older[1]))) == [sent[0]]
    assert _listed(await _page(board, "/?key=b")) == [sent[2], sent[1]]
    assert _listed(await _page(board, "/?key=b&status=dead")) == []


async def test_a_filter_that_does_not_fit_is_refused(board: Board) -> None:
    for query in ("limit=0", "cursor=x", "since=yesterday", "nonsense=1", "key=%00"):
        response = await board.http.get(f"/?{query}")
        assert response.status_code == 400, query
        assert "can't be shown" in unescape(response.text)


@pytest.mark.usefixtures("briefly")
async def test_without_postgres_the_page_says_so(settings: Settings) -> None:
    away = replace(settings, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    async with serving(away) as base_url, httpx.AsyncClient(headers=AT_HOME, base_url=base_url, timeout=30) as http:
        for response in await asyncio.gather(http.get("/"), http.get(f"/ui/events/{uuid4()}")):
            assert response.status_code == 503
            assert "Postgres does not answer" in response.text


def test_steps_side_by_side_overlap_and_calls_stand_below_their_step() -> None:
    drawn = waterfall(
        _event(
            [
                ("accepted", 0, None, None),
                ("claimed", 10, None, None),
                ("step", 20, "classify", 80),
                ("step", 20, "recall", 40),
                ("call", 30, "classify", 60),
                ("settled", 110, None, 110),
            ]
        ),
        NOW,
    )
    assert [row.label for row in drawn.rows] == ["accepted", "attempt 1", "classify", "hello@1", "recall", "succeeded"]
    classify, recall = _row(drawn.rows, "classify").bars[0], _row(drawn.rows, "recall").bars[0]
    assert classify.x == recall.x
    assert classify.width == pytest.approx(2 * recall.width, abs=0.01)
    assert _row(drawn.rows, "attempt 1").note == "waited 10 ms"
    assert not drawn.is_cut


def test_an_hour_between_attempts_does_not_hide_the_steps() -> None:
    hour_ms = 3_600_000
    timeline: list[tuple[view.What, int, str | None, int | None]] = [
        ("accepted", 0, None, None),
        ("claimed", 10, None, None),
        ("step", 10, "first", 100),
        ("retry", 110, None, 100),
        ("claimed", hour_ms, None, None),
        ("step", hour_ms, "second", 100),
        ("settled", hour_ms + 100, None, hour_ms + 100),
    ]
    drawn = waterfall(_event(timeline), NOW)
    assert drawn.is_cut
    assert all(_row(drawn.rows, name).bars[0].width > 20 for name in ("first", "second"))
    assert _row(drawn.rows, "second").at == "1 h"
    assert drawn.ticks[-1] == (100, "1 h")


def test_a_replay_starts_its_own_wait() -> None:
    timeline: list[tuple[view.What, int, str | None, int | None]] = [
        ("accepted", 0, None, None),
        ("claimed", 10, None, None),
        ("settled", 20, None, 20),
        ("replayed", 5000, None, None),
        ("claimed", 5004, None, None),
        ("settled", 5010, None, 5010),
    ]
    rows = waterfall(_event(timeline), NOW).rows
    assert [row.note for row in rows if row.kind == "try"] == ["waited 10 ms", "waited 4.0 ms"]


def test_a_scale_never_runs_backwards() -> None:
    drawn = scale([(5, 10), (8, 30), (500, 501), (700, 700)], 1000)
    places = [drawn.at(ms) for ms in range(-5, 1010, 5)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 100)
    assert drawn.back(drawn.at(20)) == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(
    ("ms", "told"),
    [
        (0.001, "<0.01 ms"),
        (0.04, "0.04 ms"),
        (4.26, "4.3 ms"),
        (999.4, "999 ms"),
        (1250, "1.25 s"),
        (59_999, "1 min"),
        (200_000, "3 min 20 s"),
        (7_500_000, "2 h 5 min"),
        (86_400_000 * 3, "3 d"),
    ],
)
def test_durations_read_well(ms: float, told: str) -> None:
    assert lasting(ms) == told


def test_moments_sums_and_json_read_well() -> None:
    assert ago(NOW - timedelta(seconds=3), NOW) == "3 s ago"
    assert ago(NOW + timedelta(minutes=2, seconds=5), NOW) == "in 2 min"
    assert ago(NOW, NOW) == "now"
    assert [dollars(each) for each in (0, 0.000054, 0.0156, 1234.5)] == ["$0.00", "$0.000054", "$0.0156", "$1,234.50"]
    assert pretty({"a": [1]}) == '{\n  "a": [\n    1\n  ]\n}'
    assert "more characters" in pretty("x" * 200_000)


def _event(timeline: Sequence[tuple[view.What, int, str | None, int | None]]) -> dict[str, Any]:
    call = {"prompt": "hello", "version": 1, "provider": "p", "model": "m", "tokens_in": 1, "tokens_out": 1}
    details: dict[str, dict[str, Any]] = {
        "call": {**call, "cost_usd": 0.0, "outcome": "ok", "simulated": True},
        "settled": {"outcome": "succeeded", "error": None},
    }
    moments = [
        view.Moment(seq, NOW + timedelta(milliseconds=at), what, step, 1, ms, details.get(what))
        for seq, (what, at, step, ms) in enumerate(timeline, 1)
    ]
    return {"accepted_at": NOW, "finished_at": moments[-1].at, "status": "succeeded", "timeline": moments}


def _row(rows: list[Row], label: str) -> Row:
    return next(row for row in rows if row.label == label)


def _listed(page: str) -> list[str]:
    return re.findall(r'href="/ui/events/([^"]+)"', page)


async def _page(board: Board, path: str) -> str:
    response = await board.http.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/html")
    return response.text
