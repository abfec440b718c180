"""Customer messages to try things on: the two labelled sets that come with Callboard, and files of the user's."""

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec
from msgspec import Struct

MESSAGES_MAX: Final = 100_000
SUBJECT_MAX: Final = 60
HELD_OUT_EVERY: Final = 10


class Message(Struct, frozen=True):
    text: str
    label: str | None = None
    subject: str | None = None


class Split(Struct, frozen=True):
    """`examples` become neighbours with their labels, `questions` tickets; each with its position in the file."""

    examples: list[tuple[int, Message]]
    questions: list[tuple[int, Message]]


def shipped(name: Literal["seed", "demo"]) -> list[Message]:
    return read(Path(__file__).parent / "messages" / f"{name}.jsonl")


def read(path: Path) -> list[Message]:
    try:
        return parse(path.read_text(encoding="utf-8-sig"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} can't be read as UTF-8 text: {error}.") from error


def parse(content: str, name: str) -> list[Message]:
    """Messages from JSON lines, or from CSV with a header, whichever `content` looks like."""
    rows = _json_lines(content, name) if content.lstrip().startswith("{") else _csv_rows(content, name)
    messages = [_message(row, f"{name}, message {n}") for n, row in enumerate(islice(rows, MESSAGES_MAX + 1), 1)]
    if not messages:
        raise click.UsageError(f"{name} holds no messages.")
    if len(messages) > MESSAGES_MAX:
        raise click.UsageError(f"{name} holds more than {MESSAGES_MAX:,} messages; take a part of it.")
    return messages


def split(messages: list[Message]) -> Split:
    """Every tenth message is held out and asked about; so is each one without a label."""
    plan = Split([], [])
    for index, message in enumerate(messages):
        held_out = message.label is None or index % HELD_OUT_EVERY == 0
        (plan.questions if held_out else plan.examples).append((index, message))
    return plan


def subject_of(message: Message) -> str:
    """The given subject, else the first words of the text."""
    line = " ".join((message.subject or "").split() or message.text.split())
    return line if len(line) <= SUBJECT_MAX else line[: SUBJECT_MAX - 1].rsplit(" ", 1)[0] + "…"


def _json_lines(content: str, name: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, RecursionError) as error:
                raise click.UsageError(f"{name}, line {number} is not a JSON object: {error}.") from error


def _csv_rows(content: str, name: str) -> Iterator[Mapping[str, Any]]:
    try:
        yield from csv.DictReader(io.StringIO(content, newline=""), strict=True)
    except csv.Error as error:
        raise click.UsageError(f"{name} is not CSV: {error}.") from error


def _message(row: Mapping[str, Any], location: str) -> Message:
    text = _field(row, "text", "body")
    if text is None:
        raise click.UsageError(f"{location} has no text: a field or column `text` or `body` is wanted.")
    return Message(text, _field(row, "label", "category"), _field(row, "subject"))


def _field(row: Mapping[str, Any], *names: str) -> str | None:
    return next((value for name in names if isinstance(value := row.get(name), str) and value.strip()), None)
