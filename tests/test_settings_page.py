"""deploy/settings.md is held against the code: each setting with its default, each bound with its number."""

import importlib
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, get_type_hints

import pytest
from msgspec import Meta

from service.core.declared import variables_of_providers
from service.core.metrics import FAMILIES
from service.core.settings import Settings, load, variables
from service.http.connections import BOUNDS
from tests.processes import ROOT

PAGE: Final = (ROOT / "deploy" / "settings.md").read_text(encoding="utf-8")
NUMBER: Final = re.compile(r"(\d[\d,]*)(?: (KiB|MiB|days))?(?!\w)")
UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "days": 86_400}
SHARE: Final = "n + 1"  # of callers: no number that stands in the code
FROM: Final = re.compile(r"`(CALLBOARD_\w+|[\w/]+\.py: [\w.]+)`")
LIMIT: Final = re.compile(r"^_?[A-Z_]*MAX(?:_S)?\b(?=: Final| =)", re.MULTILINE)
WHERE: Final = ("schemas", "service", "workers")
OF_NOBODY: Final = ("service/cli/", "service/embedded/", "workers/simulator/", "workers/nodes/")

# What is named so and is no bound on what callers have of a program: how texts are cut for people, what a cache of ours
# keeps, what a number can be, what others' rules are, how long something of ours is tried.
OTHERS: Final = {
    "service/core/errors.py": {"TEXT_MAX"},
    "service/http/metrics.py": {"LOOK_MAX"},
    "service/http/operations.py": {"CURSOR_MAX"},
    "service/http/stream.py": {"SEQ_MAX"},
    "service/access/keys.py": {"HELD_MAX", "IDLE_MAX"},
    "service/feed/live_log.py": {"N_MAX"},
    "service/core/migrate.py": {"LASTS_MAX_S"},
    "service/core/postgres_address.py": {"CONNECT_TIMEOUT_MAX_S"},
    "service/core/program.py": {"NEW_MAX"},
    "service/access/quotas.py": {"HELD_MAX"},
    "service/core/servers.py": {"REDIS_MAX"},
    "service/core/supervise.py": {"PAUSE_MAX_S", "STOP_MAX_S"},
    "service/core/traces.py": {"PLACE_MAX", "_CAUSES_MAX", "_FRAMES_MAX", "_MEMBERS_MAX", "_DEPTH_MAX"},
    "workers/models/call.py": {"DOUBTFUL_MAX"},
    "service/documents/embedder.py": {"TEXT_MAX"},
    "workers/models/errors.py": {"ALONE_MAX"},
    "workers/models/prices.py": {"LINEAR_TOKENS_MAX"},
    "workers/models/rate_limit_shares.py": {"PAUSE_MAX_S"},
    "workers/models/structured.py": {
        *("NAME_MAX", "LEVELS_MAX", "PROPERTIES_MAX", "ENUM_VALUES_MAX", "LETTERS_MAX", "LARGE_ENUM_LETTERS_MAX")
    },
    "workers/engine/budget/budgets.py": {"HELD_WAIT_MAX_S"},
    "workers/engine/scheduler.py": {"CONNECTIONS_MAX"},
    "workers/engine/ending.py": {"ALONE_MAX"},
    "workers/engine/executor.py": {"CANCELS_MAX"},
    "workers/engine/lease.py": {"GAP_MAX_S"},
    "workers/engine/dead_letter_relay.py": {"BYTES_MAX"},
    "workers/engine/retry.py": {"MISFITS_MAX", "MESSAGE_MAX", "CAUSE_MAX", "MEMBERS_MAX"},
    "workers/engine/unsettled.py": {"KEPT_MAX"},
    "workers/kit/failures.py": {"LEAVES_MAX"},
    "workers/kit/ordered.py": {"DEPTH_MAX"},
    "workers/kit/record.py": {"ERROR_MAX"},
    "workers/kit/round_trip.py": {"DEPTH_MAX"},
    "workers/kit/signature.py": {"NODES_MAX"},
}


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the table with these columns, without those that name a group."""
    match = re.search(rf"^\| {re.escape(heading)} \|\n\|[ |-]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert match, heading
    for line in match[1].splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if not cells[0].startswith("**"):
            yield cells


ROWS: Final = list(rows("what | how much | whose | over it | counted | from"))


def test_the_settings_are_all_of_them_with_their_defaults() -> None:
    shown = [[row[0].strip("`"), row[1].strip("`")] for row in rows("setting | default |")]
    names, providers = variables(), variables_of_providers().values()
    others = {"PAGE_URL", *(name for known in providers for name in (*known.keys, *known.options))}
    assert sorted(name for name, _ in shown if name not in others) == sorted(names)
    for name, text in ((name, text) for name, text in shown if name in names):
        default = getattr(Settings(), names[name])
        assert (getattr(load({name: text}), names[name]), bool(text)) == (default, default != ""), name


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_number_is_the_one_in_the_code(row: list[str]) -> None:
    """In the order in which the last column says where they come from."""
    shown = NUMBER.findall(f"{row[1]} {row[2]}".replace(SHARE, ""))
    numbers = [int(digits.replace(",", "")) * UNITS[unit] for digits, unit in shown]
    assert numbers == [in_code(source) for source in FROM.findall(row[5])]
    assert row[5]


def in_code(source: str) -> float:
    """The default of a setting; a constant; or the most that a field or a type takes."""
    if source.startswith("CALLBOARD_"):
        return float(getattr(Settings(), source.removeprefix("CALLBOARD_").lower()))
    file, _, name = source.partition(": ")
    found: Any = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        hints = get_type_hints(found, include_extras=True) if isinstance(found, type) else {}
        found = hints.get(part) or getattr(found, part)
    if isinstance(found, timedelta):
        return found.total_seconds()
    return float(found) if isinstance(found, int | float) else next(limits_of(found))


def limits_of(kind: Any) -> Iterator[float]:
    for each in (*getattr(kind, "__metadata__", ()), *getattr(kind, "__args__", ())):
        if isinstance(each, Meta):
            yield from (float(most) for most in (each.max_length, each.le) if most is not None)
        else:
            yield from limits_of(each)


def test_no_bound_of_the_code_is_missing() -> None:
    shown: dict[str, set[str]] = {}
    for source in (match for row in ROWS for match in FROM.findall(row[5])):
        file, _, name = source.partition(": ")
        shown.setdefault(file, set()).add(name)
    there: dict[str, set[str]] = {}
    for path in sorted(file for folder in WHERE for file in (ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(OF_NOBODY):
            there[name] = set(LIMIT.findall(path.read_text(encoding="utf-8")))
    assert {name: left for name, found in there.items() if (left := found - shown.get(name, set()))} == OTHERS
    assert {name for name in shown if "_MAX" in name and name.endswith("_MAX")} == {
        name for name in variables() if name.endswith("_MAX")
    }


def test_what_is_counted_is_a_metric_with_that_label() -> None:
    words = {word for row in ROWS for word in re.findall(r"`([^`]+)`", row[4])}
    bounds = {word for word in words if re.fullmatch("[a-z]+", word)}
    assert {word for word in words if word.startswith("callboard_")} <= FAMILIES.keys()
    assert {word for word in words - bounds if not word.startswith("callboard_")} == {
        *("4xx", "5xx", 'limit="rate"', 'limit="open"', 'limit="queue"')
    }
    code = "\n".join(file.read_text() for folder in ("service", "workers") for file in (ROOT / folder).rglob("*.py"))
    counted = set(re.findall(r'(?:callboard_refused_total", \(|Turns\(|\.count\()"([a-z]+)"', code))
    commits = set(re.findall(r'GroupCommit\[[^(]*\]\(\s*"([a-z]+)"', code))
    assert bounds == (counted | commits | set(BOUNDS.values())) - {"keys"}, "fewer connections than places to look up"


def test_whoever_is_refused_for_want_of_room_is_counted() -> None:
    """A 429 or 503 says so by a metric of its own; a 4xx for what a request is, at least by its class."""
    assert [row[0] for row in ROWS if re.search(r"\b[45]\d\d\b", row[3]) and not row[4]] == []
    vague = [row[0] for row in ROWS if "429" in row[3] and row[4] in ("`4xx`", "`5xx`")]
    assert vague == []
