"""User code for a test: events and pipelines declared in the test itself, wired as in a worker."""

from msgspec.structs import replace

from schemas import Event
from schemas.catalog import EventType, type_name
from service.core.settings import Settings
from workers.bootstrap import program
from workers.compiler.wiring import connected
from workers.engine.supervisor import Program
from workers.kit import Pipeline


def program_of(settings: Settings, **pipelines: Pipeline) -> Program:
    """A program of these pipelines alone, each under its keyword; of those after another, too."""
    wired = {}
    catalog = {}
    for name, pipeline in pipelines.items():
        if pipeline.on is not None:
            kind = type_name(pipeline.on)
            wired[kind] = connected(name, kind, pipeline, pipelines)
            catalog[kind] = event_type(pipeline.on)
    return replace(program(settings), catalog=catalog, wiring=wired)


def event_type(struct: type[Event]) -> EventType:
    from msgspec import json

    return EventType(type_name(struct), struct, json.Decoder(struct))
