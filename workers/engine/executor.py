"""An event's life in a worker, top to bottom: choose → attempt → settle. (The consumer claims.)"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from msgspec import MsgspecError, Struct, field, json

from schemas.catalog import Catalog
from schemas.outcome import Done, HandedBack, Outcome
from service.core.errors import Reject
from service.core.failpoints import hit
from service.core.log import RUN
from service.core.metrics import Meters
from service.core.servers import Pool
from service.core.settings import Settings
from service.core.time_limit import shared_limits
from workers.compiler.plan import execute
from workers.compiler.wiring import Wired, Wiring, chosen
from workers.engine.budget.ledger import Ledger
from workers.engine.budget.step_call_log import call_logs
from workers.engine.claim import Claimed
from workers.engine.ending import store_ending
from workers.engine.journal import Journal, recall, run_result, states
from workers.engine.retry import Unreadable, judged, unknown_type
from workers.engine.run_feed import FeedPublisher
from workers.engine.running_event import RunningEvent
from workers.engine.settle import Ending, Settler
from workers.engine.unsettled import Unsettled
from workers.kit import Pipeline
from workers.kit.failures import is_being_closed, stale_in
from workers.kit.handles import Clients, RunDeps
from workers.kit.memory import Facts, Stale
from workers.kit.pipeline import RETRY
from workers.kit.record import check_size
from workers.kit.run import Run
from workers.kit.state import NO_KEY

HAND_BACK_TIMEOUT_S: Final = 5.0
CANCELS_MAX: Final = 5  # one a second: a run that goes on after so many is waited for no longer

log = logging.getLogger("callboard.executor")


class Deps(Struct, frozen=True):
    """What every run needs and none changes."""

    settings: Settings
    catalog: Catalog
    wiring: Wiring
    clients: Clients
    pool: Pool
    ledger: Ledger
    journal: Journal
    settler: Settler
    publisher: FeedPublisher
    meters: Meters = field(default_factory=Meters)


class Executor:
    """The events that are being run, one task each, at most `settings.concurrency`."""

    def __init__(self, deps: Deps, guard: Callable[[], Awaitable[UUID]]) -> None:
        self._deps: Final = deps
        self._guard: Final = guard
        self._held: Final[set[RunningEvent]] = set()  # an event may be in it twice, under a lost claim and a new one
        self._freed: Final = asyncio.Event()
        self._draining = False
        self._limits: Final = shared_limits()
        self.unsettled: Final = Unsettled()

    @property
    def in_flight(self) -> int:
        return len(self._held)

    @property
    def free(self) -> int:
        return self._deps.settings.concurrency - len(self._held)

    @property
    def poison_suspects(self) -> int:
        return sum(running.claimed.poison_suspect for running in self._held)

    def claims(self) -> list[Claimed]:
        """The claims whose runs are going on, but for those that are being settled."""
        return [running.claimed for running in self._held if running.attempting]

    def holds(self) -> list[Claimed]:
        return [running.claimed for running in self._held]

    def lift_limits(self) -> None:
        """Somebody has stopped this worker in a debugger: what runs then is not ended for the time that he takes."""
        for running in self._held:
            running.lift_limit()

    async def free_slots(self) -> int:
        """Wait for a free slot, then say how many there are."""
        while self.free <= 0:
            self._freed.clear()
            await self._freed.wait()
        return self.free

    def start(self, claimed: Claimed) -> None:
        running = RunningEvent(claimed, self._deps.publisher.feed(claimed))
        running.task = asyncio.create_task(self._live(running), name=f"event {claimed.event_id}")
        self._held.add(running)
        running.task.add_done_callback(lambda done: self._let_go(running, done))

    async def drain(self, grace_s: float) -> None:
        """Let what runs finish for `grace_s`, then hand the rest back, uncharged."""
        await self._wait(grace_s)
        self._draining = True
        for running in self._held:
            if running.attempting:
                running.cancel()
        await self._wait(HAND_BACK_TIMEOUT_S)
        self.drop_all()

    async def _wait(self, timeout_s: float) -> None:
        if tasks := [running.task for running in self._held if running.task is not None]:
            await asyncio.wait(tasks, timeout=timeout_s)

    def drop(self, event_id: UUID, claim: int | None = None) -> None:
        """The event is not ours any more (cancelled, taken over): its run is ended, and nothing of it is settled."""
        for running in list(self._held):
            if running.attempting and running.claimed.event_id == event_id and claim in (None, running.claimed.claim):
                running.is_ours = False
                running.cancel()
                if running.cancels > CANCELS_MAX:
                    self._abandon(running)

    def _abandon(self, running: RunningEvent) -> None:
        """Its slot is free; what it still does is refused, as that of any stale claim."""
        self._held.discard(running)
        self._freed.set()
        self._deps.meters.add("callboard_runs_abandoned_total")
        log.error("event %s: its run swallows its cancellation, in %s", running.claimed.event_id, running.location)

    def drop_all(self) -> None:
        """The lease is lost: what runs is somebody else's now, and nothing of it is settled."""
        for running in self._held:
            running.is_ours = False
            running.cancel()

    def late(self) -> list[tuple[RunningEvent, float]]:
        """The runs that we have kept waiting, and by how many seconds more their deadlines are to be moved for it."""
        return [(running, late_s) for running in self._held if running.is_ours and (late_s := running.late_s)]

    def _let_go(self, running: RunningEvent, done: "asyncio.Task[None]") -> None:
        self._held.discard(running)
        self._freed.set()
        if not done.cancelled() and (error := done.exception()) is not None:
            self.unsettled.note(running.claimed, error)
            log.error("event %s was not settled: it is handed back", running.claimed.event_id, exc_info=error)

    async def _live(self, running: RunningEvent) -> None:
        """Whatever happens in it becomes an outcome that is stored, or is noted and counted."""
        claimed, facts = running.claimed, Facts(tell=running.feed.step, started_at=running.claimed.claimed_at)
        RUN.set(claimed.about)
        wired = chosen(self._deps.wiring, claimed.type, claimed.follow_up)
        outcome = await self._attempt(wired, running, facts) if wired else unknown_type(claimed)
        facts.failed.clear()  # a traceback holds its frames, and those hold the facts
        running.attempting, running.ended_at = False, time.monotonic()
        hit(self._deps.settings, "run_ended", claimed.type)
        await self._settle(claimed, wired, outcome, facts)

    async def _attempt(self, wired: Wired, running: RunningEvent, facts: Facts) -> Outcome:
        """Run the pipeline once; whatever it raises becomes an outcome here."""
        try:
            async with running.limit(wired.pipeline.timeout_s, self._limits):
                event, after_result = await self._read(wired, running.claimed, facts)
                result = await execute(wired.plan, self._run(running, facts, wired.pipeline), event, after_result)
            encoded = json.encode(result)
            check_size(f"the result of {wired.name}", len(encoded), self._deps.settings.result_max)
            return Done(encoded)
        except BaseException as error:  # noqa: BLE001 - the one place where any failure of user code becomes an outcome
            return self._outcome(error, wired, running, facts)

    def _outcome(self, error: BaseException, wired: Wired, running: RunningEvent, facts: Facts) -> Outcome:
        """Raises CancelledError where the run is not ours to end any more."""
        if isinstance(error, GeneratorExit) and is_being_closed():
            raise error
        stale = stale_in(error)
        if stale is not None and not running.cancelled:
            self.unsettled.note(running.claimed, stale)  # in vain, where the claim is somebody else's indeed
        if stale is not None or (running.cancelled and not (self._draining and running.is_ours)):
            running.is_ours = False
            raise asyncio.CancelledError from error
        running.uncancel()  # the ending still has to be stored in this task
        if running.cancelled:  # whatever user code makes of our cancellation
            return HandedBack()
        return judged(running.timed_out(error, wired) or error, running.claimed, wired.pipeline.retry, facts)

    async def _read(self, wired: Wired, claimed: Claimed, facts: Facts) -> tuple[Any, Any]:
        """The event, and what it follows. Raises Unreadable: nothing else means that this release can't read them."""
        try:
            event = self._deps.catalog[claimed.type].decode(claimed.data)
            await recall(self._deps.pool, claimed, facts)
            return event, await self._after_result(wired, claimed)
        except MsgspecError as error:
            raise Unreadable from error

    async def _still_ours(self, running: RunningEvent) -> None:
        """Nothing is started while the lease may be lost, nor under a claim of one that was: it may be a new one."""
        if await self._guard() != running.claimed.worker or not running.is_ours:
            raise Stale

    async def _after_result(self, wired: Wired, claimed: Claimed) -> Any:
        """What a follow-up is handed: the result of the run that it is after."""
        if wired.needs_partition_key and claimed.partition_key is None:
            raise Reject(f"{wired.name} {NO_KEY}")
        return json.decode(await run_result(self._deps.pool, claimed), type=wired.upstream) if wired.upstream else None

    def _run(self, running: RunningEvent, facts: Facts, pipeline: Pipeline) -> Run:
        claimed, deps = running.claimed, self._deps
        return Run(
            event_id=claimed.event_id,
            tenant=claimed.tenant,
            source=claimed.source,
            key=claimed.partition_key,
            number=claimed.run,
            attempt=claimed.attempt,
            _deps=RunDeps(
                claim=claimed.claim,
                clients=deps.clients,
                call_log=call_logs(claimed, facts, deps.ledger, pipeline.budget_usd, running.feed),
                facts=facts,
                settings=deps.settings,
                keep=deps.journal.keep,
                limits_s=pipeline.limits_s,
                resources=pipeline.resources,
                catalog=deps.catalog,
                load=lambda: states(deps.pool, claimed),
            ),
            _guard=lambda: self._still_ours(running),
        )

    async def _settle(self, claimed: Claimed, wired: Wired | None, outcome: Outcome, facts: Facts) -> None:
        """Until it is settled, or refused because the claim is not ours any more."""
        follow_ups = [follow_up.name for follow_up in wired.follow_ups] if wired else ()
        ending = Ending(claimed, outcome, wired.name if wired else claimed.follow_up, facts, follow_ups)
        retry = wired.pipeline.retry if wired else RETRY
        if not await store_ending(self._deps.settler, ending, retry, self._deps.meters):
            log.warning("event %s: the ending of claim %d was refused", claimed.event_id, claimed.claim)
        self._deps.publisher.status_changed(claimed.event_id)
