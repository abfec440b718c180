"""How long an event waits behind its own failure."""

from datetime import UTC, datetime
from uuid import uuid4

from schemas.identity import uuid7
from schemas.outcome import Later
from service.core.errors import Outage
from workers.engine.claim import Claimed
from workers.engine.retry import after
from workers.kit import Retry
from workers.kit.memory import Facts

POLICY = Retry(attempts=9, base_s=2.0, cap_s=10.0)


def _claimed(failures: int = 0, snoozes: int = 0) -> Claimed:
    return Claimed(
        event_id=uuid7(),
        tenant="default",
        partition_key=None,
        source="/test",
        id="1",
        type="job",
        data=b"{}",
        attributes="{}",
        parent=None,
        follow_up=None,
        run=1,
        attempts=failures,
        consecutive_losses=0,
        snoozes=snoozes,
        doubtful_snoozes=0,
        claim=1,
        claimed_at=datetime.now(UTC),
        worker=uuid4(),
    )


def _waits_s(failures: int) -> list[float]:
    claimed = _claimed(failures)
    waits = []
    for _ in range(300):
        outcome = after(ValueError("boom"), claimed, POLICY, Facts())
        assert isinstance(outcome, Later)
        assert outcome.charged
        waits.append(outcome.wait_s)
    return waits


def test_waits_double_up_to_the_cap_of_the_pipeline_and_lie_anywhere_below() -> None:
    for failures, most_s in enumerate([2.0, 4.0, 8.0, 10.0, 10.0]):
        waits = _waits_s(failures)
        assert 0.9 * most_s < max(waits) <= most_s
        assert -0.01 < min(waits) < 0.1 * most_s, "full jitter: those that failed together don't come together"


def test_waits_for_what_is_away_double_up_to_the_most_that_it_names() -> None:
    def waits_s(outage: Outage) -> list[float]:
        outcomes = [after(outage, _claimed(snoozes=snoozes), POLICY, Facts()) for snoozes in (0, 1, 2, 3, 40)]
        return [outcome.wait_s for outcome in outcomes if isinstance(outcome, Later)]

    assert waits_s(Outage("away", 1.0)) == [1, 2, 4, 8, 600]
    assert waits_s(Outage("held by others", 2.0, wait_max_s=10.0)) == [2, 4, 8, 10, 10]
