"""What touched the outside is not done again beside another value, whenever the worker is lost."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from msgspec import Struct, json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.listening import listening_on
from tests.programs import program_of
from tests.workers.engine.paying import open_shop, said
from workers.kit import Pipeline, Retry, Run, State, Stop, each, parallel, pipeline
from workers.kit.run import CHEAP_MS

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
SLOW_S = CHEAP_MS * 4 / 1000
REACHED_S = 30.0


class Job(Event, tag="job", frozen=True):
    words: tuple[str, ...] = ()
    url: str = ""


class Heard(Event, tag="heard", frozen=True):
    text: str


class Order(Struct, frozen=True):
    id: UUID


class Charged(Struct, frozen=True):
    id: UUID


class Report(Struct, frozen=True):
    order: UUID
    charged: UUID


class Count(Struct, frozen=True):
    n: int = 0


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []


class Cut:
    """Where a run stands still the first time that it comes by: there the worker is lost."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def here(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            await asyncio.Event().wait()


async def draw_order(event: Job) -> Order:
    return Order(uuid4())


async def charge(run: Run, event: Job, order: Order) -> Charged:
    await run.web.post(event.url, {"order": order.id})
    return Charged(order.id)


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[str, list[tuple[str, Any]]]]:
    """(its address, (idempotency key, body) of each post)."""
    posts: list[tuple[str, Any]] = []

    async def post(request: Request) -> Response:
        posts.append((request.headers["idempotency-key"], await request.json()))
        return Response(status_code=204)

    async with listening_on(Starlette(routes=[Route("/", post, methods=["POST"])])) as url:
        yield url, posts


@asynccontextmanager
async def running(settings: Settings, **pipelines: Pipeline) -> AsyncIterator[Board]:
    async with board_on(settings, program_of(settings, **pipelines)) as board:
        yield board


async def lost_at(board: Board, cut: Cut, event_id: str) -> dict[str, Any]:
    """The worker is lost when the run reaches `cut`: what it had in memory only is gone. The event, once it ended."""
    async with asyncio.timeout(REACHED_S):
        await cut.reached.wait()
    executor = board.workers[0].executor
    executor.drop(UUID(event_id))

    async def empty_handed() -> bool:
        return not executor.in_flight

    await eventually(empty_handed)
    await board.sql("update work set status = 'queued', worker = null, notified_at = null, due_at = now()")
    return await board.ended(event_id, REACHED_S)


async def ended_at(board: Board, cut: Cut, **data: Any) -> dict[str, Any]:
    event = await lost_at(board, cut, await board.send("job", data))
    assert event["status"] == "succeeded", event["error"]
    return event


async def test_a_free_form_posts_the_order_that_it_drew(settings: Settings) -> None:
    cut = Cut()

    async def conclude(order: Order, charged: Charged) -> Report:
        await cut.here()
        return Report(order.id, charged.id)

    @pipeline(on=Job)
    async def job(run: Run, event: Job) -> Report:
        order = await run.step(draw_order, event)
        charged = await run.step(charge, event, order)
        return await run.step(conclude, order, charged)

    async with shop() as (url, posts), running(settings, job=job) as board:
        event = await ended_at(board, cut, url=url)
        assert len(posts) == 1, "two orders were posted"
        assert event["result"] == {"order": posts[0][1]["order"], "charged": posts[0][1]["order"]}


async def test_a_flow_names_the_order_that_it_charged(settings: Settings) -> None:
    cut = Cut()

    async def conclude(order: Order, charged: Charged) -> Report:
        await cut.here()
        return Report(order.id, charged.id)

    async with (
        shop() as (url, posts),
        running(settings, job=Pipeline(on=Job, flow=[draw_order, charge, conclude])) as b,
    ):
        event = await ended_at(b, cut, url=url)
        assert [body["order"] for _, body in posts] == [event["result"]["order"]]
        assert event["result"]["order"] == event["result"]["charged"]


async def test_what_a_sibling_completed_before_is_stored_too(settings: Settings) -> None:
    """The step that posts can't know the sibling's value; the one behind both does."""
    cut, drawn = Cut(), asyncio.Event()

    async def draw(event: Job) -> Order:
        return Order(uuid4())

    async def say(order: Order) -> None:
        drawn.set()

    async def pay(run: Run, event: Job) -> Charged:
        await drawn.wait()
        await run.web.post(event.url, {})
        return Charged(uuid4())

    async def note(run: Run, order: Order, charged: Charged) -> Report:
        run.vectors.upsert("notes", str(order.id), "a note")
        await cut.here()
        return Report(order.id, charged.id)

    job = Pipeline(on=Job, flow=[parallel([draw, say], pay), note])
    async with shop() as (url, posts), running(settings, job=job) as board:
        event_id = await board.send("job", {"url": url})
        async with asyncio.timeout(REACHED_S):
            await cut.reached.wait()
        stored = {row["step"]: json.decode(row["entry"]) for row in await board.sql("select step, entry from journal")}
        assert {"draw", "say", "pay"} <= stored.keys()
        event = await lost_at(board, cut, event_id)
        assert event["result"]["order"] == stored["draw"]["result"]["id"]
        assert len(posts) == 1


async def test_replies_belong_to_their_items(settings: Settings) -> None:
    """The order of a set is another one in another process: here another each time."""
    cut = Cut()

    class Reply(Struct, frozen=True):
        word: str
        key: str

    async def dedupe(event: Job) -> list[str]:
        words = list(set(event.words))
        random.shuffle(words)
        return words

    async def shout(run: Run, event: Job, word: str) -> Reply:
        await run.web.post(event.url, {"word": word})
        if run.step_key == "shout[9]":
            await cut.here()
        return Reply(word, f"{run.event_id}/{run.step_key}")

    async def join(words: list[str], replies: list[Reply]) -> list[tuple[str, Reply]]:
        return list(zip(words, replies, strict=True))

    job = Pipeline(on=Job, flow=[dedupe, each(shout, at_once=1), join])
    async with shop() as (url, posts), running(settings, job=job) as board:
        event = await ended_at(board, cut, url=url, words=[*"abcdefghij"])
        assert [word for word, reply in event["result"] if reply["word"] != word] == []
        bodies: dict[str, set[str]] = {}
        for key, body in posts:
            bodies.setdefault(key, set()).add(body["word"])
        assert len(bodies) == 10
        assert all(len(words) == 1 for words in bodies.values()), "one key was posted with two bodies"


async def test_a_mail_is_sent_once_by_a_resource(settings: Settings) -> None:
    cut, mailer = Cut(), Mailer()

    @asynccontextmanager
    async def open_mailer() -> AsyncIterator[Mailer]:
        yield mailer

    async def send(mailer: Mailer, order: Order) -> Charged:
        mailer.sent.append(str(order.id))
        return Charged(order.id)

    async def conclude(order: Order, charged: Charged) -> Report:
        await cut.here()
        return Report(order.id, charged.id)

    job = Pipeline(on=Job, flow=[draw_order, send, conclude], resources=[open_mailer])
    async with running(settings, job=job) as board:
        event = await ended_at(board, cut)
        assert mailer.sent == [event["result"]["order"]]


async def _sent_once(settings: Settings, mailer: Mailer, job: Callable[[Cut], Pipeline]) -> None:
    cut = Cut()
    async with running(settings, job=job(cut)) as board:
        event = await ended_at(board, cut)
        assert mailer.sent == [event["result"]["order"]]
        assert event["result"]["order"] == event["result"]["charged"]


def _three_steps(cut: Cut, send: Callable[..., Awaitable[Charged]], resources: list[Any], *, handed: bool) -> Pipeline:
    async def conclude(order: Order, charged: Charged) -> Report:
        await cut.here()
        return Report(order.id, charged.id)

    @pipeline(on=Job, resources=resources)
    async def job(run: Run, event: Job) -> Report:
        order = await run.step(draw_order, event)
        charged = await (run.step(send, await run.resource(Mailer), order) if handed else run.step(send, order))
        return await run.step(conclude, order, charged)

    return job


async def test_a_mail_is_sent_once_by_a_free_form(settings: Settings) -> None:
    mailer = Mailer()

    @asynccontextmanager
    async def open_mailer() -> AsyncIterator[Mailer]:
        yield mailer

    async def send(mailer: Mailer, order: Order) -> Charged:
        mailer.sent.append(str(order.id))
        return Charged(order.id)

    await _sent_once(settings, mailer, lambda cut: _three_steps(cut, send, [open_mailer], handed=True))


async def test_a_mail_is_sent_once_by_a_node_that_fetches_its_resource(settings: Settings) -> None:
    mailer = Mailer()

    @asynccontextmanager
    async def open_mailer() -> AsyncIterator[Mailer]:
        yield mailer

    async def send(run: Run, order: Order) -> Charged:
        (await run.resource(Mailer)).sent.append(str(order.id))
        return Charged(order.id)

    await _sent_once(settings, mailer, lambda cut: _three_steps(cut, send, [open_mailer], handed=False))


async def test_a_mail_is_sent_once_by_a_client_that_only_the_node_knows(settings: Settings) -> None:
    mailer = Mailer()

    async def send(run: Run, order: Order) -> Charged:
        await run.outside()
        mailer.sent.append(str(order.id))
        return Charged(order.id)

    await _sent_once(settings, mailer, lambda cut: _three_steps(cut, send, [], handed=False))


async def _cut_off_in(settings: Settings, cut: Cut, send: Callable[..., Awaitable[Charged]], **options: Any) -> UUID:
    """The order of the result, where the worker was lost in the step that sends it."""

    async def conclude(order: Order, charged: Charged) -> Report:
        return Report(order.id, charged.id)

    job = Pipeline(on=Job, flow=[draw_order, send, conclude], **options)
    async with running(settings, job=job) as board:
        event_id = await board.send("job", {})
        async with asyncio.timeout(REACHED_S):
            await cut.reached.wait()
        assert [row["step"] for row in await board.sql("select step from journal")] == ["draw_order"]
        event = await lost_at(board, cut, event_id)
        assert event["result"]["order"] == event["result"]["charged"]
        return UUID(event["result"]["order"])


async def test_a_step_cut_off_in_its_resource_does_the_same_again(settings: Settings) -> None:
    cut, mailer = Cut(), Mailer()

    @asynccontextmanager
    async def open_mailer() -> AsyncIterator[Mailer]:
        yield mailer

    async def send(mailer: Mailer, order: Order) -> Charged:
        mailer.sent.append(str(order.id))
        await cut.here()
        return Charged(order.id)

    order = await _cut_off_in(settings, cut, send, resources=[open_mailer])
    assert mailer.sent == [str(order)] * 2


async def test_a_step_cut_off_in_a_post_posts_the_same_under_the_same_key(settings: Settings) -> None:
    cut = Cut()
    async with shop() as (url, posts):

        async def send(run: Run, order: Order) -> Charged:
            await run.web.post(url, {"order": order.id})
            await cut.here()
            return Charged(order.id)

        order = await _cut_off_in(settings, cut, send)
        assert [body for _, body in posts] == [{"order": str(order)}] * 2
        assert len({key for key, _ in posts}) == 1


async def test_a_model_is_asked_behind_what_was_stored(settings: Settings, tmp_path: Path) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> Response:
        asked.set()
        await go_on.wait()
        return said("yes")

    async def ask(run: Run, order: Order) -> str:
        return await run.llm.ask("say", returns=str, text=str(order.id))

    async with open_shop(settings, tmp_path, Pipeline(on=Job, flow=[draw_order, ask])) as (board, provider):
        provider.answer = slowly
        event_id = await board.send("job", {})
        async with asyncio.timeout(REACHED_S):
            await asked.wait()
        assert [row["step"] for row in await board.sql("select step from journal")] == ["draw_order"]
        go_on.set()
        assert (await board.ended(event_id))["status"] == "succeeded"


class Inner(Struct, frozen=True):
    text: str


async def remember(run: Run, count: State[Count], text: str) -> Inner:
    """A cheap step with every effect there is."""
    run.vectors.upsert("notes", f"{run.event_id}/{text}", text)
    run.emit(Heard(text))
    count.set(Count(count.value.n + 1))
    return Inner(text)


async def hear(event: Heard) -> str:
    return event.text


async def _effects(board: Board, event_id: str) -> dict[str, Any]:
    children = (await board.http.get("/events", params={"source": f"/events/{event_id}"})).json()["items"]
    ended = [await board.ended(child["event_id"]) for child in children]
    documents = await board.sql("select id from documents where collection = 'notes'")
    return {
        "documents": sorted(row["id"].partition("/")[2] for row in documents),
        "children": sorted(child["data"]["text"] for child in ended),
        "states": (await board.http.get("/actors/ann")).json()["states"],
    }


async def test_the_effects_of_a_step_within_a_step_survive(settings: Settings) -> None:
    """Two deep, side by side, beside one that ended its own flow; the outer step is stored, the worker is lost."""
    cut = Cut()

    async def stops(run: Run, text: str) -> Inner | Stop:
        run.vectors.upsert("notes", f"{run.event_id}/{text}", text)
        return Stop(Inner(text))

    async def middle(run: Run, text: str) -> Inner:
        run.vectors.upsert("notes", f"{run.event_id}/middle", "middle")
        return await run.step(remember, text)

    async def outer(run: Run, event: Job) -> list[str]:
        run.emit(Heard("outer"))
        one, ended = await asyncio.gather(run.step(middle, "one"), run.step(stops, "stopped"))
        assert isinstance(ended, Stop)
        two = await run.step(remember, "two")
        await asyncio.sleep(SLOW_S)
        return [one.text, two.text]

    async def conclude(texts: list[str]) -> list[str]:
        await cut.here()
        return texts

    # Inside and outside of a `parallel`, in the free form and in a flow, a step is the same.
    job = Pipeline(on=Job, flow=[parallel(outer), conclude], retry=QUICK)
    async with running(settings, job=job, heard=Pipeline(on=Heard, flow=[hear])) as board:
        event_id = await board.send("job", {}, partitionkey="ann")
        event = await lost_at(board, cut, event_id)
        assert (event["status"], event["result"]) == ("succeeded", ["one", "two"])
        assert await _effects(board, event_id) == {
            "documents": ["middle", "one", "stopped", "two"],
            "children": ["one", "outer", "two"],
            "states": {"Count": {"n": 2}},
        }


async def test_two_outer_steps_do_not_share_an_inner_one(settings: Settings) -> None:
    """Both run `write` with the same argument; one of them was stored when the worker was lost in the other."""
    cut = Cut()
    first = asyncio.Event()

    async def write(run: Run, text: str) -> Order:
        run.emit(Heard(text))
        await asyncio.sleep(SLOW_S)
        return Order(uuid4())

    async def outer(run: Run, word: str) -> Order:
        if word == "slow":
            await first.wait()
        order = await run.step(write, "same")
        if word == "slow":
            await cut.here()
        await asyncio.sleep(SLOW_S)
        first.set()
        return order

    async def words(event: Job) -> list[str]:
        return list(event.words)

    job = Pipeline(on=Job, flow=[words, each(outer)], retry=QUICK)
    async with running(settings, job=job, heard=Pipeline(on=Heard, flow=[hear])) as board:
        event_id = await board.send("job", {"words": ["quick", "slow"]})
        event = await lost_at(board, cut, event_id)
        assert len({order["id"] for order in event["result"]}) == 2, "one inner step was taken for the other"
        children = (await board.http.get("/events", params={"source": f"/events/{event_id}"})).json()["items"]
        assert len(children) == 2


async def test_a_replay_from_an_inner_step_runs_the_steps_around_it(settings: Settings) -> None:
    ran: list[str] = []

    async def inner(run: Run, word: str) -> str:
        await asyncio.sleep(SLOW_S)
        ran.append(f"inner {word}")
        return word

    async def outer(run: Run, event: Job) -> str:
        ran.append("outer")
        one = await run.step(inner, "one")
        return one + await run.step(inner, "two")

    async with running(settings, job=Pipeline(on=Job, flow=[outer])) as board:
        event_id = await board.send("job", {})
        event = await board.ended(event_id)
        steps = [moment["step"] for moment in event["timeline"] if moment["what"] == "step"]
        second = [step for step in steps if "inner" in step][1]
        assert second.startswith("outer>inner:")
        ran.clear()
        await board.http.post(f"/events/{event_id}/replay", json={"from": second})
        event = await board.ended(event_id)
        assert (event["run"], event["result"], ran) == (2, "onetwo", ["outer", "inner two"])


async def test_what_an_outer_step_drew_for_an_inner_one_is_drawn_again(settings: Settings) -> None:
    cut = Cut()

    async def outer(run: Run, event: Job) -> Charged:
        order = Order(run.uuid())
        charged = await run.step(charge, event, order)
        await cut.here()
        return charged

    async with shop() as (url, posts), running(settings, job=Pipeline(on=Job, flow=[outer])) as board:
        event = await ended_at(board, cut, url=url)
        assert [body["order"] for _, body in posts] == [event["result"]["id"]]


async def test_a_replay_of_a_success_keeps_what_an_emitted_child_came_from(settings: Settings) -> None:
    async def announce(run: Run, order: Order) -> Charged:
        run.emit(Heard(str(order.id)))
        return Charged(order.id)

    async def conclude(order: Order, charged: Charged) -> Report:
        return Report(order.id, charged.id)

    job = Pipeline(on=Job, flow=[draw_order, announce, conclude])
    async with running(settings, job=job, heard=Pipeline(on=Heard, flow=[hear])) as board:
        event_id = await board.send("job", {})
        before = (await board.ended(event_id))["result"]
        await board.http.post(f"/events/{event_id}/replay")
        event = await board.ended(event_id)
        assert (event["run"], event["result"]) == (2, before)


async def test_a_result_that_does_not_survive_fails_at_its_step(settings: Settings) -> None:
    class Score(Struct, frozen=True):
        n: int

    class Reviewed(Score, frozen=True):
        by: str

    paid: list[str] = []

    async def review(event: Job) -> Score:
        return Reviewed(1, "ann")

    async def pay(score: Score) -> str:
        paid.append(getattr(score, "by", "nobody"))
        return paid[-1]

    async with running(settings, job=Pipeline(on=Job, flow=[review, pay], retry=QUICK)) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["attempts"], paid) == ("dead", 2, [])
        assert event["error"]["step"] == "review"
        assert event["error"]["message"] == (
            "the result of step review would be read back as another: this is no field of its declared type - at `$.by`"
        )
