"""Child events: checked when a step says them, stored with the end of its event."""

from datetime import datetime
from typing import Final

from msgspec import Raw, ValidationError, json

from schemas import Event
from schemas.catalog import Catalog, type_name
from schemas.text import BadEvent, check
from service.core.errors import Reject, WiringError
from workers.kit.memory import Child, Facts
from workers.kit.ordered import ordered

EMIT_MAX: Final = 1_000
EMIT_BYTES_MAX: Final = 8 << 20
KEY_MAX: Final = 200


def child(
    catalog: Catalog, event: Event, step: str, child_id: str, key: str | None, due_at: datetime | None, size_max: int
) -> Child:
    """Raises Reject, which names the step, for what the door would not take; WiringError where no step runs."""
    if not step:
        raise WiringError(
            f"run.emit({type(event).__name__}): emit while a node runs, in the free form by `await run.step(…)`."
        )
    kind = catalog.get(type_name(type(event)))
    if kind is None:
        raise Reject(f'{step} emits "{type_name(type(event))}", which is not in schemas/events/.')
    if key is not None and not 0 < len(key) <= KEY_MAX:
        raise Reject(f"{step} emits {kind.name} with a key of {len(key)} characters: 1 to {KEY_MAX} are taken.")
    if due_at is not None and due_at.tzinfo is None:
        raise Reject(f"{step} emits {kind.name} with a due_at that has no time zone: run.now() has one.")
    try:
        data = kind.encode(ordered(event))  # said again after a takeover, it is the same child
        kind.decode(data)
        check(data)
        check(json.encode(key))
    except (ValidationError, BadEvent, TypeError, ValueError) as error:
        raise Reject(f"{step} emits {kind.name}, which does not fit: {error}") from error
    if len(data) > size_max:
        raise Reject(f"{step} emits {kind.name} with {len(data)} bytes, CALLBOARD_BODY_MAX is {size_max}.")
    return Child(child_id, kind.name, key, due_at, Raw(data))


def count(facts: Facts, child: Child) -> None:
    """Raises Reject where the event says too much."""
    facts.emitted += 1
    facts.emitted_bytes += len(child.data)
    if facts.emitted > EMIT_MAX or facts.emitted_bytes > EMIT_BYTES_MAX:
        raise Reject(
            f"one event may emit {EMIT_MAX} events of {EMIT_BYTES_MAX} bytes in all. Let children emit the rest."
        )
