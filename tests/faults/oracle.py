"""One oracle for every fault: what the client was promised, what really happened, and I1-I7 between the two."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg
from msgspec import Struct, json

from tests.faults.load import Sent
from tests.faults.rig import Rig

ENDED: Final = ("succeeded", "dead", "cancelled")
# What charges no attempt (I7) is every ending of a claim but these.
CHARGED: Final = ("failed", "dead")
ENDINGS: Final = {"probe.poison": "dead", "probe.crash": "dead"}
TELLING: Final = ("probe.once", "probe.slow", "probe.ask", "probe.both", "probe.speak", "probe.block", "probe.new")

REST_POLL_S: Final = 0.1

Row: TypeAlias = asyncpg.Record


class Evidence(Struct, frozen=True):
    """Everything there is to know about one run of the rig."""

    rig: Rig
    sent: Mapping[str, Sent]  # by event_id
    events: Mapping[str, Row]
    work: Mapping[str, Row]
    attempts: Mapping[str, Sequence[Row]]
    audit: Mapping[str, Sequence[Row]]
    calls: Sequence[Row]
    letters: Sequence[Row]
    ended: Mapping[str, str]  # the status that each kind is expected to end with


async def judge(rig: Rig, still_open: Iterable[UUID] = (), ended: Mapping[str, str] | None = None) -> Evidence:
    """Wait until all is quiet but `still_open`, then hold everything against I1-I7.

    `ended`: the status that events of a kind must end with, where it is not the usual one.
    """
    still = [str(row) for row in still_open]
    begun = time.monotonic()
    await at_rest(rig, still_open)
    rig.rest_s = time.monotonic() - begun
    evidence = await _evidence(rig, ENDINGS | dict(ended or {}))
    measure(evidence, still)
    assert not rig.lost, f"I1: {rig.lost} accepted events neither ended as expected nor wait visibly"
    assert not rig.doubled, f"I2: {rig.doubled} effects happened twice"
    nothing_lost(evidence, still)
    once(evidence, still)
    paid_once(evidence)
    none_unasked(evidence)
    bounded(evidence)
    nobody_charged(evidence)
    in_order(evidence)
    await letters_relayed(evidence)
    return evidence


async def at_rest(rig: Rig, still_open: Iterable[UUID]) -> None:
    """I6: nobody helps, and until nothing is left something ends every `expects_s`; a backlog takes what it takes."""
    left, since = -1, time.monotonic()
    while not await rig.quiet(still_open):
        (row,) = await rig.sql("select count(*) from work")
        if row["count"] != left:
            left, since = row["count"], time.monotonic()
        if time.monotonic() - since > rig.expects_s:
            rows = await rig.sql("select * from work limit 20")
            raise AssertionError(f"I6: nothing ended for {rig.expects_s:g} s; {await rig.pending()} entries; {rows}")
        await asyncio.sleep(REST_POLL_S)


async def _evidence(rig: Rig, ended: Mapping[str, str]) -> Evidence:
    return Evidence(
        rig=rig,
        sent={answer.event_id: answer for answer in rig.load.taken},
        events={str(row["event_id"]): row for row in await rig.sql("select * from events")},
        work={str(row["event_id"]): row for row in await rig.sql("select * from work")},
        attempts=_by_event(await rig.sql("select * from attempts order by event_id, claim")),
        audit=_by_event(await rig.sql("select * from audit order by n")),
        calls=await rig.sql("select * from calls"),
        letters=await rig.sql("select * from dead_letters"),
        ended=ended,
    )


def _by_event(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[str(row["event_id"])].append(row)
    return found


def measure(evidence: Evidence, still_open: Sequence[str]) -> None:
    """The numbers of the table: lost, doubled, and how long each claim of a worker that was struck had to wait."""
    rig = evidence.rig
    rig.lost = sum(not _kept(evidence, sending, still_open) for sending in evidence.sent)
    rig.doubled = sum(_extra(rows, "ended") + _extra_documents(rows) for rows in evidence.audit.values())
    rig.takeovers_s = []
    for held in rig.held:
        again = (row for row in evidence.audit[held.event_id] if row["what"] == "claimed" and row["claim"] > held.claim)
        found = next(again, None)
        if found is not None:
            rig.takeovers_s.append(found["at"].timestamp() - held.struck_at)


def _kept(evidence: Evidence, event_id: str, still_open: Sequence[str]) -> bool:
    event = evidence.events.get(event_id)
    if event is None:
        return False
    if event["status"] == "open":
        return event_id in still_open and event_id in evidence.work
    return event["status"] in ENDED


def _extra(rows: Sequence[Row], what: str) -> int:
    """How many endings too many: one for each time it was opened."""
    seen = Counter(row["what"] for row in rows)
    return max(0, seen[what] - seen["opened"])


def _extra_documents(rows: Sequence[Row]) -> int:
    seen = Counter(row["what"] for row in rows)
    return max(0, seen["document"] - seen["ended"])


def nothing_lost(evidence: Evidence, still_open: Sequence[str]) -> None:
    """I1: every 202 has ended, as its kind does, or is visibly on its way."""
    for event_id, sent in evidence.sent.items():
        assert _kept(evidence, event_id, still_open), f"{sent.id} ({event_id}) is lost"
        event = evidence.events[event_id]
        if event["status"] != "open":
            expected = evidence.ended.get(sent.kind, "succeeded")
            assert event["status"] == expected, f"{sent.id} {sent.kind}: {event['status']} {event['error']}"


def once(evidence: Evidence, still_open: Sequence[str]) -> None:
    """I2: one settle for each run, by the holder of the claim; one effect; one key for each effect outside."""
    counts = Counter(effect.key for effect in evidence.rig.sink.effects)
    for event_id, sent in evidence.sent.items():
        if event_id in still_open:
            continue
        event, rows = evidence.events[event_id], evidence.audit[event_id]
        seen = Counter(row["what"] for row in rows)
        assert seen["ended"] == seen["opened"] == event["run"], f"{sent.id}: {dict(seen)}"
        claims = [row["claim"] for row in rows if row["what"] == "claimed"]
        assert len(claims) == len(set(claims)), f"{sent.id}: a claim was given out twice: {claims}"
        if event["status"] != "succeeded":
            continue
        result = json.decode(event["result"])
        assert result["token"] == sent.token, f"{sent.id}: {result}"
        # An earlier claim's, where the step was remembered.
        assert result["claim"] in claims, f"{sent.id}: {result}, claims {claims}"
        settled = [row for row in evidence.attempts[event_id] if row["outcome"] == "succeeded"]
        assert [row["claim"] for row in settled] == [event["claim"]], f"{sent.id}: {settled}"
        documents = [row["detail"] for row in rows if row["what"] == "document"]
        assert documents == [sent.token], f"{sent.id}: {documents}"
        keys = [key for key in counts if key.startswith(f"{event_id}/")]
        assert len(keys) == 1, f"{sent.id}: effects outside under {keys}"
        assert counts[keys[0]] <= len(claims), f"{sent.id}: told {counts[keys[0]]} times in {len(claims)} claims"


def paid_once(evidence: Evidence) -> None:
    """I3: a step calls once per claim at most; what an ended event asked for is in the ledger."""
    counts = Counter((call.event_id, call.claim, call.step) for call in evidence.rig.sink.calls)
    assert not [call for call, times in counts.items() if times > 1], counts.most_common(3)
    per_step = Counter((call.event_id, call.step) for call in evidence.rig.sink.calls)
    for (event_id, step), times in per_step.items():
        rights = [row for row in evidence.audit[event_id] if row["what"] == "claimed"]
        assert times <= len(rights), f"{event_id} {step}: {times} calls in {len(rights)} claims"
    kept = {(str(row["event_id"]), row["step"]) for row in evidence.calls if row["outcome"] == "ok"}
    for event_id, event in evidence.events.items():
        if event["status"] == "succeeded" and event["type"] == "probe.ask":
            assert {(event_id, "first"), (event_id, "second")} <= kept, f"{event_id}: not in the ledger"


def none_unasked(evidence: Evidence) -> None:
    """I4: what is there was promised, once for each id."""
    assert set(evidence.events) == set(evidence.sent), set(evidence.events) ^ set(evidence.sent)
    assert len({sending.id for sending in evidence.sent.values()}) == len(evidence.sent)


def bounded(evidence: Evidence) -> None:
    """I5: the streams were never longer than twice what was accepted, the live entries of each event and one id."""
    assert evidence.rig.length_max <= 2 * len(evidence.sent) + evidence.rig.extra_rings, evidence.rig.length_max


def nobody_charged(evidence: Evidence) -> None:
    """I7: no attempt of an event that never failed by itself was used up."""
    for event_id, sent in evidence.sent.items():
        if sent.kind not in TELLING:
            continue
        outcomes = [row["outcome"] for row in evidence.attempts[event_id]]
        assert not set(outcomes) & set(CHARGED), f"{sent.id}: {outcomes}"
        assert evidence.events[event_id]["attempts"] <= 1, f"{sent.id}: {outcomes}"


def in_order(evidence: Evidence) -> None:
    """Per key: places in the order of the promises, endings in the order of places, no two claims at once."""
    keyed = defaultdict(list)
    for event_id, sent in evidence.sent.items():
        if sent.key is not None:
            keyed[sent.key].append(event_id)
    for key, ids in keyed.items():
        place = {each: _place(evidence, each) for each in ids}
        in_place = sorted(ids, key=place.__getitem__)
        for n, one in enumerate(in_place):
            behind = [evidence.sent[each] for each in in_place[n + 1 :]]
            passed = [each.id for each in behind if each.answered_at < evidence.sent[one].sent_at]
            assert not passed, (
                f"{key}: {passed} were promised before {evidence.sent[one].id} was sent, and stand behind it"
            )
        ends = [each for each in in_place if evidence.events[each]["status"] != "open"]
        order = [_n(evidence, each, "ended") for each in ends]
        assert order == sorted(order), f"{key}: ended out of order"
        _apart(evidence, key, ids)


def _apart(evidence: Evidence, key: str, ids: Sequence[str]) -> None:
    """No event of a key is claimed while another one is held."""
    rows = sorted((row for event_id in ids for row in evidence.audit[event_id]), key=lambda row: int(row["n"]))
    holder = None
    for row in rows:
        if row["what"] == "claimed":
            assert holder in (None, row["event_id"]), f"{key}: {row['event_id']} was claimed beside {holder}"
            holder = row["event_id"]
        elif row["what"] in ("freed", "closed") and holder == row["event_id"]:
            holder = None


def _place(evidence: Evidence, event_id: str) -> int:
    return max(
        int(row["mailbox_seq"])
        for row in evidence.audit[event_id]
        if row["what"] == "placed" and row["mailbox_seq"] is not None
    )


def _n(evidence: Evidence, event_id: str, what: str) -> int:
    return max(int(row["n"]) for row in evidence.audit[event_id] if row["what"] == what)


async def letters_relayed(evidence: Evidence) -> None:
    """A dead letter for each run that ended dead: in the table once, in the stream at least once under the same id."""
    dead = {each for each, event in evidence.events.items() if event["status"] == "dead"}
    assert Counter(str(row["event_id"]) for row in evidence.letters) == Counter(dead)
    if evidence.rig.forgets:
        return
    entries = await evidence.rig.client.xrange("callboard:dead")
    told = {fields[b"dead_id"].decode() for _, fields in entries}
    assert {str(row["dead_id"]) for row in evidence.letters} <= told
