"""User code that waits in every way that a worker's clock could spoil: python -m tests.skewed runs it as a worker."""

import asyncio
import os
from datetime import timedelta
from typing import Final

from schemas import Event
from service.core.errors import Outage
from service.core.log import setup
from service.core.settings import Settings, load
from tests.programs import program_of
from workers.bootstrap import run
from workers.engine.supervisor import Program
from workers.kit import Pipeline, Retry, Run

WAIT_S: Final = 1.0


class Fails(Event, tag="skew.fails", frozen=True):
    pass


class Snoozes(Event, tag="skew.snoozes", frozen=True):
    pass


class Emits(Event, tag="skew.emits", frozen=True):
    pass


class Child(Event, tag="skew.child", frozen=True):
    pass


async def fail(event: Fails) -> None:
    raise ValueError("no")


async def snooze(run: Run, event: Snoozes) -> None:
    if run._deps.claim == 1:
        raise Outage("the shop is closed", WAIT_S)


async def emit(run: Run, event: Emits) -> None:
    run.emit(Child(), due_at=run.now() + timedelta(seconds=WAIT_S))


async def nothing(event: Child) -> None:
    return None


def skewed(settings: Settings) -> Program:
    return program_of(
        settings,
        fails=Pipeline(on=Fails, flow=[fail], retry=Retry(attempts=2, base_s=WAIT_S, cap_s=WAIT_S)),
        snoozes=Pipeline(on=Snoozes, flow=[snooze]),
        emits=Pipeline(on=Emits, flow=[emit]),
        child=Pipeline(on=Child, flow=[nothing]),
    )


if __name__ == "__main__":
    setup()
    asyncio.run(run(skewed(load(os.environ))))
