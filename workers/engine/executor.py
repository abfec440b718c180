"""An event's life in a worker, top to bottom: choose → attempt → settle. (The claim is the reader's.)"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, json

from schemas.catalog import Catalog
from schemas.outcome import Done, HandedBack, Outcome
from service.commits import BadRow
from service.errors import Reject, Unavailable
from service.log import RUN
from service.resources import Pool
from service.settings import Settings
from workers.engine.book import account
from workers.engine.claimed import Claimed
from workers.engine.journal import Journal, followed, recall, states
from workers.engine.ledger import Ledger
from workers.engine.live import Voice, Wire
from workers.engine.retry import after, unknown_type
from workers.engine.settle import Ending, Settler
from workers.kit import Pipeline
from workers.kit.handles import Clients
from workers.kit.memory import Facts, Stale
from workers.kit.plan import execute
from workers.kit.record import check_size
from workers.kit.run import Run
from workers.kit.state import NO_KEY
from workers.kit.wiring import Wired, Wiring, chosen

SETTLE_TIMEOUT_S: Final = 60.0
SETTLE_AGAIN_S: Final = 1.0
HAND_BACK_TIMEOUT_S: Final = 5.0

log = logging.getLogger("callboard.executor")


class Stage(Struct, frozen=True):
    """What every run needs and none changes."""

    settings: Settings
    catalog: Catalog
    wiring: Wiring
    clients: Clients
    pool: Pool
    ledger: Ledger
    journal: Journal
    settler: Settler
    wire: Wire


class Hand(Struct, eq=False):
    """An event in hand. `ours`: until we hear that the claim is somebody else's; `attempting`: until it is settled."""

    claimed: Claimed
    voice: Voice
    task: "asyncio.Task[None] | None" = None
    attempting: bool = True
    ours: bool = True

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Executor:
    """The events in hand, one task each, at most `settings.concurrency`."""

    def __init__(self, stage: Stage, guard: Callable[[], Awaitable[UUID]]) -> None:
        self._stage: Final = stage
        self._guard: Final = guard
        self._held: Final[set[Hand]] = set()  # an event may be in it twice, under a claim that is lost and a new one
        self._freed: Final = asyncio.Event()
        self._draining = False

    @property
    def in_flight(self) -> int:
        return len(self._held)

    @property
    def free(self) -> int:
        return self._stage.settings.concurrency - len(self._held)

    @property
    def suspects(self) -> int:
        return sum(hand.claimed.suspect for hand in self._held)

    def claims(self) -> list[Claimed]:
        """The claims whose runs are going on, but for those that are being settled."""
        return [hand.claimed for hand in self._held if hand.attempting]

    def holds(self) -> list[Claimed]:
        return [hand.claimed for hand in self._held]

    async def free_slots(self) -> int:
        """Wait for a free slot, then say how many there are."""
        while self.free <= 0:
            self._freed.clear()
            await self._freed.wait()
        return self.free

    def start(self, claimed: Claimed) -> None:
        hand = Hand(claimed, self._stage.wire.voice(claimed))
        hand.task = asyncio.create_task(self._live(hand), name=f"event {claimed.event_id}")
        self._held.add(hand)
        hand.task.add_done_callback(lambda done: self._let_go(hand, done))

    async def drain(self, grace_s: float) -> None:
        """Let what runs finish for `grace_s`, then hand the rest back, uncharged."""
        await self._wait(grace_s)
        self._draining = True
        for hand in self._held:
            if hand.attempting:
                hand.cancel()
        await self._wait(HAND_BACK_TIMEOUT_S)
        self.drop_all()

    async def _wait(self, timeout_s: float) -> None:
        tasks = [hand.task for hand in self._held if hand.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    def drop(self, event_id: UUID, claim: int | None = None) -> None:
        """The event is not ours any more (cancelled, taken over): its run is ended, and nothing of it is settled."""
        for hand in self._held:
            if hand.attempting and hand.claimed.event_id == event_id and claim in (None, hand.claimed.claim):
                hand.ours = False
                hand.cancel()

    def drop_all(self) -> None:
        """The lease is lost: what runs is somebody else's now, and nothing of it is settled."""
        for hand in self._held:
            hand.ours = False
            hand.cancel()

    def _let_go(self, hand: Hand, done: "asyncio.Task[None]") -> None:
        self._held.discard(hand)
        self._freed.set()
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("event %s was not settled; the lease will free it", hand.claimed.event_id, exc_info=error)

    async def _live(self, hand: Hand) -> None:
        claimed, facts = hand.claimed, Facts(tell=hand.voice.step, started_at=hand.claimed.claimed_at)
        RUN.set(claimed.about)
        wired = chosen(self._stage.wiring, claimed.type, claimed.reaction)
        outcome = await self._attempt(wired, hand, facts) if wired else unknown_type(claimed)
        facts.failed.clear()  # a traceback holds its frames, and those hold the facts
        hand.attempting = False
        await self._settle(claimed, wired, outcome, facts)

    async def _attempt(self, wired: Wired, hand: Hand, facts: Facts) -> Outcome:
        """Run the pipeline once; whatever it raises becomes an outcome here."""
        claimed = hand.claimed
        try:
            event = self._stage.catalog[claimed.type].decode(claimed.data)
            await recall(self._stage.pool, claimed, facts)
            gave = await self._gave(wired, claimed)
            async with asyncio.timeout(wired.pipeline.timeout_s):
                result = await execute(wired.plan, self._run(hand, facts, wired.pipeline), event, gave)
            return Done(self._encoded(result, wired))
        except asyncio.CancelledError:
            if not self._draining or not hand.ours:
                raise
            _uncancel()
            return HandedBack()
        except Stale as error:
            hand.ours = False
            raise asyncio.CancelledError from error
        except Exception as error:  # noqa: BLE001 - the one place where any failure of user code becomes an outcome
            log.info("event %s, attempt %d: %s", claimed.event_id, claimed.attempt, type(error).__name__)
            # A second name for the error would keep this frame, with the event's data, until a garbage collection.
            return after(_timed_out(error, wired) or error, claimed, wired.pipeline.retry, facts)

    async def _still_ours(self, hand: Hand) -> None:
        """Nothing is started while the lease may be lost, nor under a claim that is.

        The heart may register this worker anew before the loop hears that it had lost its lease.
        """
        if await self._guard() != hand.claimed.worker or not hand.ours:
            raise Stale

    async def _gave(self, wired: Wired, claimed: Claimed) -> Any:
        """What a follower is handed of the run that it follows."""
        if wired.needs_key and claimed.key is None:
            raise Reject(f"{wired.name} {NO_KEY}")
        return json.decode(await followed(self._stage.pool, claimed), type=wired.followed) if wired.followed else None

    def _run(self, hand: Hand, facts: Facts, pipeline: Pipeline) -> Run:
        claimed, stage = hand.claimed, self._stage
        return Run(
            event_id=claimed.event_id,
            tenant=claimed.tenant,
            source=claimed.source,
            key=claimed.key,
            number=claimed.run,
            attempt=claimed.attempt,
            claim=claimed.claim,
            clients=stage.clients,
            book=account(claimed, facts, stage.ledger, pipeline.budget_usd, hand.voice),
            facts=facts,
            settings=stage.settings,
            guard=lambda: self._still_ours(hand),
            keep=stage.journal.keep,
            limits_s=pipeline.limits_s,
            resources=pipeline.resources,
            simulated=stage.settings.simulated,
            catalog=stage.catalog,
            load=lambda: states(stage.pool, claimed),
        )

    def _encoded(self, result: object, wired: Wired) -> bytes:
        encoded = json.encode(result)
        check_size(f"the result of {wired.name}", len(encoded), self._stage.settings.result_max)
        return encoded

    async def _settle(self, claimed: Claimed, wired: Wired | None, outcome: Outcome, facts: Facts) -> None:
        """Until it is settled, or refused because the claim is not ours any more."""
        name = wired.name if wired else claimed.reaction
        followers = [each.name for each in wired.followers] if wired else ()
        ending = Ending(claimed, outcome, name, facts, followers)
        while True:
            try:
                if not await self._stage.settler.settle(ending, SETTLE_TIMEOUT_S):
                    log.warning("event %s: the ending of claim %d was refused", claimed.event_id, claimed.claim)
                self._stage.wire.moved(claimed.event_id)
                return
            except Unavailable:
                await asyncio.sleep(SETTLE_AGAIN_S)
            except BadRow as error:
                if wired is None or not isinstance(outcome, Done):
                    raise
                ending = Ending(claimed, after(error, claimed, wired.pipeline.retry, facts), name, facts)


def _timed_out(error: Exception, wired: Wired) -> Exception | None:
    """A TimeoutError has no text of its own; whose it was, the node's or the attempt's, its step says."""
    if not isinstance(error, TimeoutError) or str(error):
        return None
    told = TimeoutError(f"not finished in time (an attempt of {wired.name} may take {wired.pipeline.timeout_s:g} s)")
    told.__cause__ = error
    return told


def _uncancel() -> None:
    """The hand-back still has to be settled in this task."""
    if (task := asyncio.current_task()) is not None:
        task.uncancel()
