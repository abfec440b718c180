"""What errors of strangers say of themselves, and where in the user's own code they came from."""

import asyncio
import json as standard_json
import logging
import sys
from pathlib import Path

import pytest

from service.core.errors import CallboardError, Outage, Reject, kind_and_text, kind_of, text_of
from service.core.log import Lines
from service.core.traces import formatted, is_users, location_of
from tests.processes import ROOT

HALF = "caf\udce9\0"


class Mute(Exception):
    def __init__(self, raises: BaseException) -> None:
        super().__init__()
        self.raises = raises

    def __str__(self) -> str:
        raise self.raises


@pytest.mark.parametrize("raises", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_error_that_says_nothing_of_itself_is_named(raises: BaseException) -> None:
    assert text_of(Mute(raises)) == f"Mute, whose text can't be read: its __str__ raised {type(raises).__name__}"


def test_texts_are_storable_and_bounded() -> None:
    assert text_of(ValueError(HALF)) == "caf\ufffd\ufffd"
    assert str(Reject(HALF)) == str(CallboardError(HALF)) == Outage(HALF).cause == "caf\ufffd\ufffd"
    assert len(text_of(ValueError("x" * 9_999))) == 2_000
    assert (kind_of(TimeoutError()), kind_and_text(TimeoutError())) == ("TimeoutError", "TimeoutError")
    assert kind_and_text(KeyError("a")) == "KeyError: 'a'"


@pytest.mark.parametrize("plain", [False, True])
def test_a_log_line_takes_any_text(plain: bool) -> None:
    record = logging.LogRecord("mine", logging.INFO, "", 0, "the file %s", (HALF,), None)
    record.found = [HALF]
    line = Lines((), plain=plain, with_payloads=False).format(record)
    assert line.encode()
    assert "\0" not in line
    assert plain or standard_json.loads(line)["message"] == "the file caf\ufffd\ufffd"


def raised() -> Exception:
    try:
        standard_json.loads("{")
    except ValueError as error:
        return error
    raise AssertionError


def test_a_place_is_the_deepest_of_the_users_own() -> None:
    """Not of a library, nor of Python's."""
    error = raised()
    line = raised.__code__.co_firstlineno + 2
    assert location_of(error) == f"tests/service/core/test_errors.py:{line} in raised"
    assert formatted(error).splitlines()[1] == f"  tests/service/core/test_errors.py:{line} in raised"
    assert location_of(ValueError()) is None


def test_a_place_may_be_that_of_the_cause() -> None:
    error = RuntimeError()
    error.__cause__ = raised()
    assert str(location_of(error)).endswith(" in raised")


@pytest.mark.parametrize(
    ("file", "is_one"),
    [
        (ROOT / "workers/nodes/triage.py", True),
        (ROOT / "workers/pipelines/support.py", True),
        (ROOT / "workers/providers/openai.py", True),
        (ROOT / "schemas/events/tickets.py", True),
        (ROOT / "mine/helpers.py", True),
        ("/srv/mine/helpers.py", True),
        (ROOT / "workers/kit/run.py", False),
        (ROOT / "schemas/text.py", False),
        (ROOT / "service/core/errors.py", False),
        (asyncio.__file__, False),
        (pytest.__file__, False),
        (Path(sys.prefix) / "lib/python3.11/site-packages/x.py", False),
        ("<string>", False),
    ],
)
def test_whose_a_file_is(file: Path | str, is_one: bool) -> None:
    assert is_users(str(file)) is is_one
