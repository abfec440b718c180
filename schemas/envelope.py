"""The CloudEvents 1.0 envelope: native JSON and structured mode are one form, three attributes optional."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, ValidationError, json

from schemas.catalog import Catalog
from schemas.identity import uuid7
from schemas.text import BadEvent, check, malformed, misfit

TENANT: Final = "default"
SOURCE: Final = "/http"  # where the event names none
RESERVED: Final = ("/events/", "/schedules/", "key ")
"""Beginnings of the sources that Callboard itself gives: to the events that events and schedules cause, whose ids with
them tell a second time from the first, and to the documents that a key has put (service/http/documents.py)."""

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Moment = Annotated[datetime, Meta(tz=True)]
_EXTENSION: Final = re.compile(r"[a-z0-9]{1,20}")
_OURS: Final = frozenset(
    ("status", "attempts", "run", "worker", "pipeline", "result", "error", "calls", "timeline", "parent")
)
EXTENSIONS_MAX: Final = 32
EXTENSIONS_BYTES_MAX: Final = 8 << 10
_NOT_JSON: Final = (msgspec.DecodeError, RecursionError)


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """The attributes CloudEvents names, its documented extensions we know, and ours (`dueat`)."""

    type: Name
    data: Raw = msgspec.field(default_factory=lambda: Raw(b"{}"))
    id: Name | UnsetType | None = UNSET
    source: Name | UnsetType | None = UNSET
    specversion: Literal["1.0"] | UnsetType = UNSET
    subject: Name | UnsetType | None = UNSET
    time: Moment | UnsetType | None = UNSET
    datacontenttype: (
        Annotated[str, Meta(pattern=r"^application/([a-z0-9.+-]+\+)?json\s*(;.*)?$")] | UnsetType | None
    ) = UNSET
    dataschema: Annotated[str, Meta(min_length=1, max_length=2000)] | UnsetType | None = UNSET
    partitionkey: Name | UnsetType | None = UNSET
    dueat: Moment | UnsetType | None = UNSET
    traceparent: (
        Annotated[str, Meta(pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*$", max_length=200)]
        | UnsetType
        | None
    ) = UNSET


class Attributes(Struct, frozen=True, omit_defaults=True):
    """What is kept of an envelope beside the columns that queries use."""

    subject: str | None = None
    time: datetime | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    dueat: datetime | None = None
    traceparent: str | None = None
    extensions: dict[str, str | int | bool] = {}


class Incoming(Struct, frozen=True):
    """A valid event, ready to be stored. `quota_key`: the prefix of the key whose `max_open` counts it."""

    event_id: UUID
    source: str
    id: str
    type: str
    partitionkey: str | None
    due_at: datetime | None
    attributes: Attributes
    data: bytes
    tenant: str = TENANT
    parent: UUID | None = None
    follow_up: str | None = None
    quota_key: str | None = None
    accepted_by: str | None = None


_envelopes: Final = json.Decoder(Envelope)
_members: Final = json.Decoder(dict[str, Raw])
_extension: Final = json.Decoder(Annotated[str, Meta(max_length=2000)] | int | bool | None)


def read(
    body: bytes,
    catalog: Catalog,
    *,
    source: str,
    default_id: str | None = None,
    tenant: str = TENANT,
    accepted_by: str | None = None,
) -> Incoming:
    """Decode one event: its envelope, then its `data` by the Struct of its `type`.

    `source` and `default_id` stand in where the event names none; without either, `id` is the `event_id`. `accepted_by`
    is the prefix of the key it came with.
    Raises BadEvent with the path of the field: 400 where it is no JSON, 422 where it does not fit.
    """
    check(body)
    envelope, extensions = _envelope(body)
    if envelope.source and envelope.source.startswith(RESERVED):
        message = (
            f"what begins with {' or '.join(map(repr, RESERVED))} is kept for what Callboard itself says: send another "
            "source, or replay the event"
        )
        raise BadEvent(422, message, "$.source")
    data = _data(envelope, catalog)
    event_id = uuid7()
    return Incoming(
        event_id=event_id,
        source=envelope.source or source,
        id=envelope.id or default_id or str(event_id),
        type=envelope.type,
        partitionkey=envelope.partitionkey or None,
        due_at=_due_at(envelope.dueat or None),
        attributes=Attributes(
            subject=envelope.subject or None,
            time=envelope.time or None,
            datacontenttype=envelope.datacontenttype or None,
            dataschema=envelope.dataschema or None,
            dueat=envelope.dueat or None,
            traceparent=envelope.traceparent or None,
            extensions=extensions,
        ),
        data=data,
        tenant=tenant,
        accepted_by=accepted_by,
    )


def _due_at(value: datetime | None) -> datetime | None:
    try:
        return value and value.astimezone(UTC)
    except OverflowError as error:
        raise BadEvent(422, "lies before the year 1 or behind the year 9999", "$.dueat") from error


def _envelope(body: bytes) -> tuple[Envelope, dict[str, str | int | bool]]:
    try:
        return _envelopes.decode(body), {}
    except ValidationError as error:
        if "unknown field" not in str(error):
            raise misfit(error) from error
    except _NOT_JSON as error:
        raise malformed(body, str(error)) from error
    try:
        return _with_extensions(body)
    except _NOT_JSON as error:
        raise malformed(body, str(error)) from error


def _with_extensions(body: bytes) -> tuple[Envelope, dict[str, str | int | bool]]:
    """The slow way, for envelopes with other attributes: kept as extensions where CloudEvents allows the name."""
    members = _members.decode(body)
    known = {name: members.pop(name) for name in Envelope.__struct_fields__ if name in members}
    extensions: dict[str, str | int | bool] = {}
    for name, raw in members.items():
        if name in _OURS or not _EXTENSION.fullmatch(name):
            raise BadEvent(422, _no_extension(name), f"$.{name}")
        value = _extension_value(name, raw)
        if value is not None:
            extensions[name] = value
    _check_extensions(members)
    try:
        return _envelopes.decode(json.encode(known)), extensions
    except ValidationError as error:
        raise misfit(error) from error


def _check_extensions(members: dict[str, Raw]) -> None:
    """They are kept, and answered in each list: what is large belongs in `data`. Raises BadEvent."""
    size = sum(len(name.encode()) + len(bytes(raw)) for name, raw in members.items())
    if len(members) > EXTENSIONS_MAX or size > EXTENSIONS_BYTES_MAX:
        message = f"at most {EXTENSIONS_MAX} extensions of {EXTENSIONS_BYTES_MAX} bytes together are taken, here are"
        raise BadEvent(422, f"{message} {len(members)} of {size} bytes. Put what is large into `data`.")


def _extension_value(name: str, raw: Raw) -> str | int | bool | None:
    try:
        value: str | int | bool | None = _extension.decode(raw)
        return value
    except ValidationError as error:
        raise BadEvent(422, f"{error} (an extension is a string, an integer or a boolean)", f"$.{name}") from error


def _no_extension(name: str) -> str:
    if name == "data_base64":
        return "binary data is not taken: send JSON in `data`"
    if name in _OURS:
        return "this name is taken: GET /events/{event_id} answers with it"
    return "unknown attribute (extensions have 1 to 20 lower-case letters or digits)"


def _data(envelope: Envelope, catalog: Catalog) -> bytes:
    """Decoded and encoded again: what is stored is what a pipeline will see, defaults included."""
    kind = catalog.get(envelope.type)
    if kind is None:
        raise BadEvent(422, f'unknown type "{envelope.type}" (known: {_some(catalog)})', "$.type")
    raw = bytes(envelope.data)
    try:
        return kind.encode(kind.decode(raw))
    except ValidationError as error:
        raise misfit(error, "$.data") from error
    except _NOT_JSON as error:
        fault = malformed(raw, str(error))
        raise BadEvent(400, fault.message, "$.data" + fault.path[1:]) from error


def _some(catalog: Catalog) -> str:
    return ", ".join(sorted(catalog)[:20]) or "none; add one in schemas/events/"


def attributes_of(row: dict[str, Any]) -> dict[str, Any]:
    """The CloudEvents attributes and extensions of a stored event, as they stand at top level, without `data`."""
    attributes = json.decode(row["attributes"], type=Attributes)
    named = {
        "specversion": "1.0",
        "id": row["id"],
        "source": row["source"],
        "type": row["type"],
        "subject": attributes.subject,
        "time": attributes.time,
        "datacontenttype": attributes.datacontenttype or "application/json",
        "dataschema": attributes.dataschema,
        "partitionkey": row["partitionkey"],
        "dueat": attributes.dueat,
        "traceparent": attributes.traceparent,
    }
    return {name: value for name, value in named.items() if value is not None} | attributes.extensions
