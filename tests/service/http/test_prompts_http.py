"""What models are told, as the API tells it; and how each version fared."""

from datetime import UTC, datetime, timedelta

import httpx

from tests.board import TICKET, Board
from tests.processes import ROOT


async def test_every_prompt_with_its_versions_and_models(api: httpx.AsyncClient) -> None:
    items = (await api.get("/prompts")).json()["items"]
    assert {"tickets/classify", "chat/answer"} <= {item["name"] for item in items}
    (told,) = [item for item in items if item["name"] == "tickets/classify"]
    assert (told["versions"], told["model"]) == ([1], "fast")
    assert told["models"][0].startswith("openai ")


async def test_one_prompt_by_name_and_version(api: httpx.AsyncClient) -> None:
    newest = (await api.get("/prompts/tickets/classify")).json()
    assert newest == (await api.get("/prompts/tickets/classify@1")).json()
    assert newest["variables"] == ["ticket"]
    assert newest["text"].startswith("+++\n")
    assert newest["first_used"] is None
    for name in ("tickets/nothing", "tickets/classify@9", "tickets"):
        answer = await api.get(f"/prompts/{name}")
        assert (answer.status_code, name.partition("@")[0] in answer.json()["detail"]) == (404, True)


async def test_a_version_of_any_length_is_a_404(api: httpx.AsyncClient) -> None:
    """Python converts no text of more than 4,300 digits to a number."""
    for digits in (4_300, 4_301, 5_000):
        answer = await api.get(f"/prompts/tickets/classify@{'9' * digits}")
        assert answer.status_code == 404
        assert "has no version 999999999…" in answer.json()["detail"]


async def test_an_error_names_a_file_by_its_path_in_the_project(api: httpx.AsyncClient) -> None:
    refused = await api.post("/prompts/tickets/classify/render", json={"variables": {}})
    assert "(prompts/tickets/classify/v1.md)" in refused.json()["detail"]
    assert str(ROOT) not in refused.text


async def test_a_prompt_is_rendered(api: httpx.AsyncClient) -> None:
    asked = {"variables": {"ticket": {**TICKET, "subject": "{{ 7 * 7 }}"}}}
    told = (await api.post("/prompts/tickets/classify@1/render", json=asked)).json()
    assert (told["name"], told["version"]) == ("tickets/classify", 1)
    assert "{{ 7 * 7 }}" in told["user"]
    assert told["system"]
    for body, status, says in [
        ({"variables": {}}, 422, "wants ticket"),
        ({"variables": {"ticket": {}}}, 422, "can't be rendered"),
        ({"variables": 1}, 422, "Expected `object`"),
        ({"variable": {}}, 422, "unknown field"),
    ]:
        refused = await api.post("/prompts/tickets/classify/render", json=body)
        assert (refused.status_code, says in refused.text) == (status, True), refused.text


async def test_versions_are_counted_over_a_time(board: Board) -> None:
    event = await board.ended(await board.send("ticket.opened", TICKET))
    assert event["calls"]
    counted = (await board.http.get("/prompt-stats")).json()["items"]
    assert sum(each["calls"] for each in counted) == event["calls"]
    (one,) = (await board.http.get("/prompt-stats", params={"name": "tickets/classify"})).json()["items"]
    assert (one["version"], one["calls"], one["ok"], one["simulated"], one["failed"]) == (1, 1, 1, 1, 0)
    assert one["tokens_in"] > 0
    assert one["cost_usd"] > 0
    assert 0 < one["p50_ms"] <= one["p95_ms"]
    await board.sql("update calls set at = at - interval '2 days'")
    assert (await board.http.get("/prompt-stats")).json()["items"] == []
    then = {"since": (datetime.now(UTC) - timedelta(days=3)).isoformat()}
    assert sum(item["calls"] for item in (await board.http.get("/prompt-stats", params=then)).json()["items"])
    await board.sql("update calls set tenant = 'another'")
    assert (await board.http.get("/prompt-stats", params=then)).json()["items"] == []


async def test_a_time_that_is_too_long_or_none_is_refused(api: httpx.AsyncClient) -> None:
    for query in ("since=2026-01-01T00:00:00Z", "until=2020-01-01T00:00:00Z&since=2020-01-02T00:00:00Z", "sinse=1"):
        assert (await api.get(f"/prompt-stats?{query}")).status_code == 400, query
