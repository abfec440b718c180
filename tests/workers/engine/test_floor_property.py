"""Nodes that end in every way Python knows: each event ends as it should, within its attempts, and its worker lives."""

import asyncio
import builtins
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from msgspec import Struct, json

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.programs import program_of
from workers.kit import Pipeline, Retry, Run, pipeline

ATTEMPTS = 2
QUICK = Retry(attempts=ATTEMPTS, base_s=0.01, cap_s=0.02)
# Python 3.11 never tells who awaits a thread that raised it: the attempt would end by its time limit.
NOT_IN_A_THREAD = (StopIteration,)


class Poked(Event, tag="poked", frozen=True):
    n: int


class Hostile(Exception):
    """Whatever is asked of it, it raises `raises`."""

    def __init__(self, raises: BaseException) -> None:
        super().__init__()
        self.raises = raises

    def __str__(self) -> str:
        raise self.raises

    def __repr__(self) -> str:
        raise self.raises

    def __eq__(self, other: object) -> bool:
        raise self.raises

    def __hash__(self) -> int:
        raise self.raises


TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates and NUL, too
KINDS = [
    value
    for value in vars(builtins).values()
    if inspect.isclass(value) and issubclass(value, BaseException) and not issubclass(value, BaseExceptionGroup)
]


def made(kind: type[BaseException], text: str) -> BaseException:
    arguments = {
        UnicodeDecodeError: ("utf-8", b"\xff", 0, 1, text),
        UnicodeEncodeError: ("utf-8", text, 0, 1, text),
        UnicodeTranslateError: (text, 0, 1, text),
    }
    return kind(*arguments.get(kind, (text,)))


ERRORS = st.recursive(
    st.builds(made, st.sampled_from([*KINDS, asyncio.CancelledError]), TEXTS)
    | st.builds(Hostile, st.builds(made, st.sampled_from(KINDS), TEXTS)),
    lambda inner: st.builds(BaseExceptionGroup, TEXTS, st.lists(inner, min_size=1, max_size=3)),
    max_leaves=4,
)
RESULTS = st.one_of(
    st.sampled_from([object, object(), print, iter([]), (n for n in range(1)), ..., NotImplemented, memoryview(b"x")]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary() | TEXTS,
    st.lists(TEXTS, max_size=3) | st.sets(st.integers(), max_size=3) | st.frozensets(TEXTS, max_size=3),
    st.dictionaries(TEXTS, TEXTS, max_size=3) | st.dictionaries(st.integers(), st.none(), max_size=3),
    st.builds(range, st.integers(0, 9)) | st.builds(slice, st.integers()) | st.builds(bytearray, st.binary()),
    st.tuples(TEXTS, st.datetimes(), st.decimals(), st.uuids(), st.timedeltas()) | ERRORS,
)


async def raises(error: BaseException) -> None:
    raise error


async def in_a_task(error: BaseException) -> None:
    await asyncio.create_task(raises(error))


async def in_a_group(error: BaseException) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raises(error))


async def gathered(error: BaseException) -> None:
    await asyncio.gather(raises(error), asyncio.sleep(0))


def throws(error: BaseException) -> None:
    raise error


async def in_a_thread(error: BaseException) -> None:
    await (raises(error) if isinstance(error, NOT_IN_A_THREAD) else asyncio.to_thread(throws, error))


async def closing(error: BaseException) -> None:
    async def values() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            raise error

    async with contextlib.aclosing(values()) as found:
        async for _ in found:
            return


async def leaving(error: BaseException) -> None:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        yield
        raise error

    async with opened():
        await asyncio.sleep(0)


async def cancelling(error: BaseException) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel(str(id(error)))
    await task


async def itself(error: BaseException) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


WAYS: list[Callable[[BaseException], Awaitable[None]]] = [
    raises,
    in_a_task,
    in_a_group,
    gathered,
    in_a_thread,
    closing,
    leaving,
    cancelling,
    itself,
]


class Case(Struct, frozen=True):
    """It returns `result`, or fails by `way` with `error`; `strays`: it leaves a task behind that fails so."""

    error: Any = None
    way: Any = None
    result: Any = None
    strays: bool = False


FAILING = st.builds(Case, ERRORS, st.sampled_from(WAYS))
RETURNING = st.builds(Case, result=RESULTS, error=ERRORS, strays=st.booleans())
CASES = FAILING | RETURNING
RUNNING: list[Case] = []


async def node(event: Poked) -> Any:
    case = RUNNING[event.n]
    if case.way is not None:
        await case.way(case.error)
        raise AssertionError("it did not fail")
    if case.strays:
        task = asyncio.create_task(raises(case.error))
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
    return case.result


@pipeline(on=Poked, retry=QUICK, timeout_s=20)
async def body(run: Run, event: Poked) -> Any:
    return await node(event)


@pipeline(on=Poked, retry=QUICK, timeout_s=20)
async def step(run: Run, event: Poked) -> Any:
    return await run.step(node, event)


PIPELINES = [Pipeline(on=Poked, flow=[node], retry=QUICK, timeout_s=20), body, step]


def storable(result: Any) -> bool:
    try:
        return bool(json.encode(result))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return False


async def check(board: Board, case: Case, event_id: str) -> None:
    event = await board.ended(event_id, 30)
    told = (case, event["status"], event["error"])
    if case.way is not None or not storable(case.result):
        assert (event["status"], event["attempts"]) == ("dead", ATTEMPTS), told
        assert event["error"]["kind"], told
        assert event["error"]["message"], told
    else:
        assert (event["status"], event["attempts"]) in (("succeeded", 1), ("dead", ATTEMPTS)), told


@given(st.lists(CASES, min_size=20, max_size=40), st.sampled_from(PIPELINES))
@example_settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
async def test_each_event_ends_as_it_should(settings: Settings, cases: list[Case], poked: Pipeline) -> None:
    RUNNING[:] = cases
    async with board_on(settings, program_of(settings, poked=poked)) as board:
        sent = [await board.send("poked", {"n": n}) for n in range(len(cases))]
        for case, event_id in zip(cases, sent, strict=True):
            await check(board, case, event_id)
        outcomes = {row["outcome"] for row in await board.sql("select distinct outcome from attempts")}
        assert outcomes <= {"succeeded", "failed", "dead"}, outcomes
        assert board.workers[0].lease.held
