"""`/events/batch`: many events in one request. Each stands or falls by itself."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import islice, takewhile
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Raw, Struct, json
from msgspec.structs import asdict, astuple
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from schemas.envelope import SOURCE
from schemas.outcome import Status
from schemas.text import BadEvent, TooDeep
from service.core.errors import OverLimit, Unavailable
from service.http.app_state import read_body, reply, state_of
from service.http.auth import caller
from service.http.events import media_type_of
from service.http.problem import Problem, on_error
from service.intake.intake import Accepted, Conflict

LINES: Final = "application/x-ndjson"
MEDIA_TYPES: Final = ("application/json", "application/cloudevents-batch+json", LINES)
BODIES_MAX: Final = 4  # the bytes of a batch: so many times those of an event
_LINE: Final = re.compile(rb"\S[^\n]*")


class BatchItem(Struct, frozen=True):
    """What became of the event at `index`: it was accepted, or has an `error`."""

    index: int
    event_id: UUID | None = None
    id: str | None = None
    source: str | None = None
    status: Status | None = None
    duplicate: bool | None = None
    error: Problem | None = None


class BatchAnswer(Struct, frozen=True):
    accepted: int
    rejected: int
    items: list[BatchItem]


async def post_batch(request: Request) -> Response:
    """202 once all are committed, 207 where some or all are not; in order, what each came to."""
    in_lines = media_type_of(request, MEDIA_TYPES) == LINES
    if "idempotency-key" in request.headers:
        raise HTTPException(400, "a batch takes no Idempotency-Key: give each event an `id` of its own")
    intake, settings = state_of(request).intake, state_of(request).settings
    body = await read_body(request, BODIES_MAX * settings.body_max)
    items = (lines if in_lines else array)(body, settings.batch_max)
    sender = caller(request)
    granted, over = await state_of(request).quotas.admit(sender.key, len(items))
    batch = await intake.read_all(
        items[:granted], tenant=sender.tenant, source=SOURCE, by=sender.actor, quota_key=sender.quota_key
    )
    for index, item in enumerate(batch):
        if isinstance(item, TooDeep) and not in_lines:
            raise BadEvent(400, item.message, f"$[{index}]")
    refused = [over] * (len(items) - granted) if over is not None else []
    return await _answer(request, [*await intake.take_all(batch), *refused])


def lines(body: bytes, most: int) -> list[bytes]:
    """Those that are not blank. Raises BadEvent 413 where there are more than `most`."""
    found_lines = [line[0] for line in islice(_LINE.finditer(body), most + 1)]
    if len(found_lines) > most:
        raise _too_many(most)
    return found_lines


def array(body: bytes, most: int) -> list[bytes]:
    """The items of a JSON array as they were written. Raises BadEvent 400 where it is none, 413 over `most` of them.

    Half a surrogate pair is the trouble of the item that has it: msgspec would refuse the whole for it, so what it is
    shown has another character of the same length there.
    """
    shown = body.replace(b"\\ud", b"\\u0").replace(b"\\uD", b"\\u0")
    try:
        decoded = _decoder(most).decode(shown)
    except (msgspec.DecodeError, RecursionError) as error:
        if "at most length" in str(error):
            raise _too_many(most) from error
        raise BadEvent(400, f"a batch is a JSON array, or lines of JSON sent as {LINES}: {error}") from error
    items, at = list[bytes](), 0
    spans = (memoryview(raw) for raw in astuple(decoded))
    for span in takewhile(len, spans):
        at = shown.index(span, at)
        items.append(body[at : at + len(span)])
        at += len(span)
    return items


@cache
def _decoder(most: int) -> json.Decoder[Any]:
    """As a Struct, since that gives up at the first item too many: a list would be made of all of them first."""
    items = [(f"item{n}", Raw, Raw()) for n in range(most)]
    return json.Decoder(msgspec.defstruct("Items", items, array_like=True, forbid_unknown_fields=True))


def _too_many(most: int) -> BadEvent:
    return BadEvent(413, f"more than {most} events (set by CALLBOARD_BATCH_MAX)", reason="too_large")


async def _answer(request: Request, outcomes: Sequence[Accepted | Exception]) -> Response:
    """Where no event was accepted and one was not at fault, it raises that one's 429 or 503: all have to come again."""
    accepted = sum(isinstance(outcome, Accepted) for outcome in outcomes)
    for outcome in outcomes:
        if not accepted and not isinstance(outcome, Accepted | BadEvent | Conflict):
            raise outcome
    items = [await _item(request, index, outcome) for index, outcome in enumerate(outcomes)]
    rejected = len(items) - accepted
    waits_s = [outcome.retry_after_s for outcome in outcomes if isinstance(outcome, OverLimit | Unavailable)]
    headers = {"Retry-After": str(max(waits_s))} if waits_s else None
    return reply({"accepted": accepted, "rejected": rejected, "items": items}, 207 if rejected else 202, headers)


async def _item(request: Request, index: int, outcome: Accepted | Exception) -> dict[str, Any]:
    if isinstance(outcome, Accepted):
        return {"index": index, **asdict(outcome)}
    return {"index": index, "error": Raw((await on_error(request, outcome)).body)}
