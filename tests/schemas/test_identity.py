"""Event ids: version 7, in the order of time, never twice."""

import time
from uuid import RFC_4122

from schemas.identity import uuid7


def test_ids_are_uuids_of_version_7_that_carry_the_time() -> None:
    before = time.time_ns() // 1_000_000
    event_id = uuid7()
    after = time.time_ns() // 1_000_000
    assert (event_id.version, event_id.variant) == (7, RFC_4122)
    assert before <= event_id.int >> 80 <= after


def test_a_later_id_sorts_later() -> None:
    ids = [uuid7() for _ in range(5000)]
    in_time = [event_id.int >> 62 for event_id in ids]  # all but what is random
    assert in_time == sorted(in_time)
    assert len(set(in_time)) > 10
    assert sorted(ids, key=str) == sorted(ids) == sorted(ids, key=lambda each: each.bytes)


def test_ids_made_at_one_moment_differ() -> None:
    assert len({uuid7() for _ in range(20_000)}) == 20_000
