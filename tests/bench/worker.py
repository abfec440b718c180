"""A worker as `python -m workers` runs it, with the pipelines of the bench: python -m tests.bench.worker FOLDER."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

import prompts
from schemas import Event
from service.core.log import setup
from service.core.settings import load
from tests.programs import program_of
from workers.bootstrap import run
from workers.kit import Pipeline, Run, parallel

MODEL: Final = "gpt-6-luna"
PROMPT: Final = """+++
model = "fast"
max_tokens = 200
variables = ["text", "n"]
+++
--- system ---
You sort the messages of customers.
--- user ---
Message {{ n }}: {{ text }}
"""
# As much as nobody reaches: what is measured is the asking.
MODELS: Final = f"""
[[fast]]
provider = "openai"
model = "{MODEL}"
limits = {{ requests_per_min = 10000000, tokens_per_min = 1000000000, concurrency = 100000 }}
"""


class Thrice(Event, tag="bench.thrice", frozen=True):
    text: str


class Nothing(Event, tag="bench.nothing", frozen=True):
    pass


class Clock(Event, tag="bench.clock", frozen=True):
    pass


class One(Struct, frozen=True):
    text: str


class Two(Struct, frozen=True):
    text: str


class Three(Struct, frozen=True):
    text: str


async def one(run: Run, event: Thrice) -> One:
    return One(await run.llm.ask("bench/sort", returns=str, text=event.text, n=1))


async def two(run: Run, event: Thrice) -> Two:
    return Two(await run.llm.ask("bench/sort", returns=str, text=event.text, n=2))


async def three(run: Run, event: Thrice) -> Three:
    return Three(await run.llm.ask("bench/sort", returns=str, text=event.text, n=3))


async def nothing(event: Nothing) -> None:
    return None


async def cpu_s(event: Clock) -> float:
    """What this process has used of the processors so far."""
    return time.process_time()


def main(folder: Path) -> None:
    setup()
    (folder / "bench" / "sort").mkdir(parents=True, exist_ok=True)
    (folder / "models.toml").write_text(MODELS)
    (folder / "bench" / "sort" / "v1.md").write_text(PROMPT)
    pipelines = {
        "thrice": Pipeline(on=Thrice, flow=[parallel(one, two, three)]),
        "nothing": Pipeline(on=Nothing, flow=[nothing]),
        "clock": Pipeline(on=Clock, flow=[cpu_s]),
    }
    program = replace(program_of(load(os.environ), **pipelines), prompts=prompts.load(folder))
    asyncio.run(run(program))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
