"""Read this first: the whole life of an event, from the door to its result."""

from tests.board import TICKET, Board
from tests.eventually import eventually


async def test_the_life_of_an_event(board: Board) -> None:
    # Somebody taught it what two kinds of messages look like: events too, through the same door.
    lessons = {
        "You charged my credit card twice": "double_charge",
        "I see the same charge two times this month": "double_charge",
        "I forgot my password and can't log in": "login_problem",
        "The login page rejects my password": "login_problem",
    }
    taught = [await board.send("message.labelled", {"text": text, "label": label}) for text, label in lessons.items()]
    for event_id in taught:
        assert (await board.ended(event_id))["status"] == "succeeded"

    # A customer writes. The 202 comes when Postgres has committed the event, not before.
    response = await board.post("ticket.opened", TICKET, id="mail-4711", source="/http", subject="mail")
    assert response.status_code == 202
    accepted = response.json()
    assert set(accepted) == {"event_id", "id", "source", "status", "duplicate"}
    assert (accepted["id"], accepted["source"], accepted["duplicate"]) == ("mail-4711", "/http", False)
    assert response.headers["location"] == f"/events/{accepted['event_id']}"

    # The mail gateway, unsure whether the first one arrived, sends it again: it is the same event.
    again = (await board.post("ticket.opened", TICKET, id="mail-4711", source="/http", subject="mail")).json()
    assert (again["event_id"], again["duplicate"]) == (accepted["event_id"], True)

    # The notification wakes a worker; it claims the event, runs the pipeline's nodes and settles.
    event = await board.ended(accepted["event_id"])
    assert event["status"] == "succeeded", event["error"]
    assert (event["type"], event["data"], event["subject"]) == ("ticket.opened", TICKET, "mail")
    assert (event["pipeline"], event["attempts"], event["attempts_max"], event["run"]) == ("support", 1, 5, 1)

    # The intent is real: the nearest labelled messages said so. What a simulated model wrote is named.
    result = event["result"]
    assert result["intent"] == "double_charge"
    assert result["route"] in ("page", "answer", "close")
    assert {"urgency", "language"} <= set(result["simulated"])
    assert (result["reply"] is not None) == (result["route"] == "answer")

    # Everything that happened to it is on record, in order.
    whats = [moment["what"] for moment in event["timeline"]]
    assert (whats[0], whats[-1]) == ("accepted", "settled")
    assert [moment["seq"] for moment in event["timeline"]] == list(range(1, len(whats) + 1))
    steps = {moment["step"]: moment for moment in event["timeline"] if moment["what"] == "step"}
    assert {"classify", "detect_language", "recall_similar", "by_urgency", "remember"} <= set(steps)
    calls = [moment for moment in event["timeline"] if moment["what"] == "call"]
    assert len(calls) == event["calls"] >= 2
    assert all(call["detail"]["simulated"] for call in calls)
    assert event["cost_usd"] > 0

    # Nothing is left to do: no open row, no entry in the stream, nothing pending.
    assert await board.sql("select 1 from work") == []
    await eventually(lambda: _quiet(board))


async def _quiet(board: Board) -> bool:
    pending = await board.redis.xpending("callboard:work", "workers")
    return bool(await board.redis.xlen("callboard:work") == 0 and pending["pending"] == 0)
