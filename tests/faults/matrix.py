"""The rows of the fault matrix: what is done to whom. Each has tests named after its number."""

import re
from typing import Final

MATRIX: Final = {
    1: "a worker is killed in the middle of calls",
    2: "a worker is killed between its commits and what follows them",
    3: "a worker is killed between a dead letter and its stream",
    4: "a worker is frozen for longer than its lease, then wakes up",
    5: "the API is killed between commit and notification",
    6: "the API is killed before the commit",
    7: "the API is killed between commit and answer",
    8: "all programs are restarted one by one, under load",
    9: "SIGTERM twice; a signal while a program starts",
    10: "Redis: FLUSHALL",
    11: "Redis: the stream or its group is deleted",
    12: "Redis is killed and comes back empty",
    13: "Redis is killed and comes back a second older",
    14: "Redis hangs up every 30 ms; twenty restarts",
    15: "Redis stands still for half a minute",
    16: "Redis is full",
    18: "Redis becomes a replica",
    20: "Redis: entries are trimmed while they pend",
    21: "Redis: a stranger takes entries and keeps them",
    22: "the same event is notified a hundred times",
    23: "Postgres is restarted",
    24: "Postgres crashes",
    25: "Postgres stands still, is slow, or is locked",
    26: "Postgres hangs up every 50 ms",
    27: "Postgres has no connection left",
    28: "the disk of Postgres is full",
    31: "network: everything vanishes, nobody says so",
    32: "network: replies get lost; half-open connections",
    33: "network: 200 ± 100 ms each way",
    34: "the clock of a worker is an hour off, or steps by an hour",
    35: "an event that raises, runs out of memory, or ends its worker",
    36: "bytes that are no event, among good ones",
    37: "a node blocks the event loop, 20 s or for good",
    38: "the provider refuses with 429 and says when to come again, or nonsense",
    39: "the provider fails, all calls or three in ten",
    40: "the provider hangs, drips, or stalls",
    42: "the provider is away for a minute under a burst of 10,000 events",
    43: "the provider is away for a day",
    48: "the reader of the stream has a bug",
    49: "an old and a new release run side by side",
    50: "operators replay the same dead letters at once",
    51: "a run of twenty nodes is killed at every boundary of a call and of the journal",
    52: "a worker is killed in the middle of streams that clients follow",
    53: "a standby takes the place of Postgres, read-only and then promoted",
    54: "PgBouncer between, of sessions, killed twice; of transactions",
    55: "Redis gets another owner: a second Callboard takes it over, and gives it back",
    56: "user code that won't end: it exits, is cancelled, swallows its cancellation",
    57: "text of strangers that can't be stored as it is",
    58: "claims that come back unsettled from a living worker",
    59: "a stream of large entries, and a worker with little memory",
}


def row_of(test: str) -> int:
    """The row that a test stands for; 0 for none."""
    match = re.match(r"test_row_(\d+)_", test)
    return int(match[1]) if match else 0
