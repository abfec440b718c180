"""One word for one thing: names that were given up for the field's own do not come back.

It looks at what the product's Python gives a name to: classes, functions, arguments, variables, attributes, modules.
Columns and stored words it looks for wherever they may stand: in statements, scripts and pages, too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT

PRODUCT: Final = ("schemas", "prompts", "sql", "service", "workers")

# What was given up, and what the thing is called now.
RENAMED: Final = {
    "Account": "Reservation",
    "Book": "CallLog",
    "Choice": "BoundRoute",
    "Clock": "Scheduler",
    "Door": "AppState",
    "Followers": "Listeners",
    "Gate": "RateLimiter",
    "Hand": "RunningEvent",
    "Mapped": "BoundEach",
    "Outbox": "Notifier",
    "Patience": "StreamTimeouts",
    "Purse": "DayBudgets",
    "Reader": "Consumer",
    "Recovery": "Resume",
    "Room": "BodyAllowance",
    "Share": "WorkerShare",
    "Stage": "RunDeps",
    "StepBook": "StepCallLog",
    "Story": "ResumeCursor",
    "Till": "Budget",
    "Together": "BoundParallel",
    "Told": "OnText",
    "Voice": "RunFeed",
    "Wire": "FeedPublisher",
    "heart": "heartbeat",
    "hole": "gap",
    "reaction": "follow_up",
    "ring": "notify",
    "rung": "notified",
}
# A participle names no thing. `each` is a function of workers.kit.
NO_NAMES: Final = ("asked", "each", "found", "gave", "given", "here", "kept", "made", "ours", "said", "told", "whole")
# Where such a name means something else, and what.
EXCEPTIONS: Final = {
    ("service/embedded/data_dir.py", "Account"): "an account of the operating system",
    ("service/operations/forget_redis.py", "found"): "a field of the public answer of POST /forget",
    ("workers/compiler/binding.py", "each"): "what binds an element of the public function `each`",
    ("workers/compiler/plan.py", "each"): "what runs such an element",
    ("workers/kit/flow.py", "each"): "the public function itself",
    ("workers/models/circuit_breaker.py", "Clock"): "a function that says the time",
    ("workers/models/openai.py", "Choice"): "OpenAI's own word for one reply",
    ("workers/models/rate_limits.py", "Clock"): "a function that says the time",
    ("workers/simulator/serve.py", "Wire"): "what the simulator's protocol reads and writes",
}


# Columns and words in rows, as they were up to 0023_field_words.sql. Only the migrations still know them.
STORED: Final = {
    "deaf": "disconnected",
    "follows_type": "after_type",
    "misses": "doubtful_snoozes",
    "needs_key": "needs_partition_key",
    "ord": "mailbox_seq",
    "put_off": "snoozed",
    "put_offs": "snoozes",
    "putoff": "snoozed",
    "rung_at": "notified_at",
    "rung_to": "notified_stream",
    "strikes": "crash_count",
    "told_no": "feed_n",
    "waits_for": "blocked_by",
}
MIGRATIONS: Final = "sql/migrations/"


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that a module gives to something."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name


def given_up(source: str) -> set[str]:
    """The names of a module that should be others."""
    return {name.strip("_") for name in names(ast.parse(source))} & {*RENAMED, *NO_NAMES}


def product() -> Iterator[Path]:
    for folder in PRODUCT:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_no_name_that_was_given_up_comes_back() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in product()
        for name in given_up(path.read_text(encoding="utf-8"))
    }
    assert sorted(found - set(EXCEPTIONS)) == [], "name it by a noun, and see RENAMED for the field's words"
    assert sorted(set(EXCEPTIONS) - found) == [], "an exception that nothing needs any more"


def test_no_column_or_stored_word_that_was_given_up_comes_back() -> None:
    given_up_word = re.compile(rf"(?<!\w)({'|'.join(STORED)})(?![\w(])")
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in PRODUCT
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".sql", ".lua", ".html", ".js")
    }
    assert {f"{MIGRATIONS}0023_field_words.sql", "sql/queries/settle.sql"} <= texts.keys(), "it looks where they are"
    assert given_up_word.findall(texts[f"{MIGRATIONS}0023_field_words.sql"])
    found = {
        f"{name}: {word} is {STORED[word]} now"
        for name, text in texts.items()
        if not name.startswith(MIGRATIONS)
        for word in given_up_word.findall(text)
    }
    assert not found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class _Door: ...", {"Door"}),
        ("for each in rows: ...", {"each"}),
        ("def f(told): ...", {"told"}),
        ("self.rung = 1", {"rung"}),
        ("row = each.told", set()),
    ],
)
def test_a_name_is_known_where_it_is_given(source: str, expected: set[str]) -> None:
    assert given_up(source) == expected
