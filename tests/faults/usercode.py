"""What the programs under test run: probe events, their nodes and pipelines, dropped into a copy of the product."""

import shutil
from pathlib import Path
from typing import Final

from tests.processes import ROOT

PRODUCT: Final = ("schemas", "prompts", "sql", "service", "workers")

EVENTS: Final = '''
"""Probes."""

from schemas import Event


class Once(Event, tag="probe.once", frozen=True):
    """One effect outside, one document."""

    token: str


class Slow(Event, tag="probe.slow", frozen=True):
    token: str
    seconds: float = 1.0


class Ask(Event, tag="probe.ask", frozen=True):
    """Two calls of a model, one after the other, then the effects of `once`."""

    token: str


class Both(Event, tag="probe.both", frozen=True):
    """As `ask`, with both calls at the same time."""

    token: str


class Speak(Event, tag="probe.speak", frozen=True):
    """As `ask`, with replies that are streamed; a retry asks the same."""

    token: str


class Poison(Event, tag="probe.poison", frozen=True):
    token: str
    how: str = "raise"


class Crash(Event, tag="probe.crash", frozen=True):
    """Ends the process that runs it."""

    token: str


class Block(Event, tag="probe.block", frozen=True):
    """Stops the whole event loop."""

    token: str
    seconds: float = 1.0
'''

NODES: Final = '''
"""What probes do."""

import asyncio
import os
import sys
import time

from msgspec import Struct

from schemas.events.probe import Ask, Block, Both, Crash, Once, Poison, Slow, Speak
from workers.kit import Reject, Run


class First(Struct, frozen=True):
    text: str


class Second(Struct, frozen=True):
    text: str


class Told(Struct, frozen=True):
    token: str
    claim: int


async def once(run: Run, event: Once) -> Told:
    return await tell(run, event.token)


async def slow(run: Run, event: Slow) -> Told:
    await asyncio.sleep(event.seconds)
    return await tell(run, event.token)


async def first(run: Run, event: Ask) -> First:
    return First(await run.llm.ask("probe/ask", returns=str, mark=f"{run.event_id}/{run._deps.claim}/first"))


async def second(run: Run, event: Ask, first: First) -> Second:
    return Second(await run.llm.ask("probe/ask", returns=str, mark=f"{run.event_id}/{run._deps.claim}/second"))


async def told(run: Run, event: Ask, second: Second) -> Told:
    return await tell(run, event.token)


async def left(run: Run, event: Both) -> First:
    return First(await run.llm.ask("probe/ask", returns=str, mark=f"{run.event_id}/{run._deps.claim}/left"))


async def right(run: Run, event: Both) -> Second:
    return Second(await run.llm.ask("probe/ask", returns=str, mark=f"{run.event_id}/{run._deps.claim}/right"))


async def joined(run: Run, event: Both, first: First, second: Second) -> Told:
    return await tell(run, event.token)


async def speak(run: Run, event: Speak) -> First:
    return First(await run.llm.stream("probe/ask", returns=str, mark=f"{run.event_id}/0/speak"))


async def answer(run: Run, event: Speak, first: First) -> Second:
    return Second(await run.llm.stream("probe/ask", returns=str, mark=f"{run.event_id}/0/answer"))


async def spoken(run: Run, event: Speak, second: Second) -> Told:
    return await tell(run, event.token)


async def poison(run: Run, event: Poison) -> Told:
    if event.how == "memory":
        raise MemoryError
    if event.how == "exit":
        sys.exit(3)
    if event.how == "half":
        raise ValueError("file caf\\udce9.pdf is \\0 broken")
    if event.how == "document":
        run.vectors.upsert("probe", str(run.event_id), "text", metadata={"bad": "\\0"})
        return Told(event.token, run._deps.claim)
    if event.how == "cancelled":
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task
    while event.how == "swallow":
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue
    if event.how == "late":
        await asyncio.sleep(3)
    if event.how in ("late", "reject"):
        raise Reject("poison")
    raise ValueError("poison")


async def crash(run: Run, event: Crash) -> Told:
    os._exit(9)


async def block(run: Run, event: Block) -> Told:
    time.sleep(event.seconds)
    return await tell(run, event.token)


async def tell(run: Run, token: str) -> Told:
    await run.web.post(os.environ["PAGE_URL"], json={"claim": run._deps.claim})
    run.vectors.upsert("probe", str(run.event_id), token)
    return Told(token, run._deps.claim)
'''

PIPELINES: Final = '''
"""Probes."""

from schemas.events.probe import Ask, Block, Both, Crash, Once, Poison, Slow, Speak
from workers.kit import Pipeline, Retry, parallel
from workers.nodes import probe

RETRY = Retry(attempts=3, base_s=0.2, cap_s=1.0)

probe_once = Pipeline(on=Once, flow=[probe.once], retry=RETRY)
probe_slow = Pipeline(on=Slow, flow=[probe.slow], retry=RETRY)
probe_ask = Pipeline(on=Ask, flow=[probe.first, probe.second, probe.told], retry=RETRY)
probe_both = Pipeline(on=Both, flow=[parallel(probe.left, probe.right), probe.joined], retry=RETRY)
probe_speak = Pipeline(on=Speak, flow=[probe.speak, probe.answer, probe.spoken], retry=RETRY)
probe_poison = Pipeline(on=Poison, flow=[probe.poison], retry=RETRY, timeout_s=5)
probe_crash = Pipeline(on=Crash, flow=[probe.crash], retry=RETRY)
probe_block = Pipeline(on=Block, flow=[probe.block], retry=RETRY)
'''

PROMPT: Final = """+++
model = "fast"
max_tokens = 100
variables = ["mark"]
+++
--- user ---
<<{{ mark }}>> Say something.
"""

# One provider: to import the SDK of another takes longer than all the rest of a program's start.
MODELS: Final = """
fast = [{ provider = "openai", model = "gpt-6-luna" }]
smart = [{ provider = "openai", model = "gpt-6.1-sol" }]
"""

FILES: Final = {
    "schemas/events/probe.py": EVENTS,
    "workers/nodes/probe.py": NODES,
    "workers/pipelines/probe.py": PIPELINES,
    "prompts/probe/ask/v1.md": PROMPT,
    "prompts/models.toml": MODELS,
}

# The same code at the other SDK.
CLAUDE: Final = {
    **FILES,
    "prompts/models.toml": """
fast = [{ provider = "anthropic", model = "claude-haiku-5-5" }]
smart = [{ provider = "anthropic", model = "claude-sonnet-5-5" }]
""",
}

# A newer release of the same code: one type more, and one more field, with a default, in a type that there was.
NEWER: Final = {
    **FILES,
    "schemas/events/probe.py": EVENTS.replace("    token: str\n", '    token: str\n    note: str = ""\n', 1)
    + '\n\nclass New(Event, tag="probe.new", frozen=True):\n    token: str\n',
    "workers/nodes/probe.py": NODES.replace("Crash, Once", "Crash, New, Once")
    + "\n\nasync def new(run: Run, event: New) -> Told:\n    return await tell(run, event.token)\n",
    "workers/pipelines/probe.py": PIPELINES.replace("Crash, Once", "Crash, New, Once")
    + "\nprobe_new = Pipeline(on=New, flow=[probe.new], retry=RETRY)\n",
}


def copy_product(folder: Path, files: dict[str, str]) -> Path:
    """The product with `files` dropped in, in `folder`."""
    for each in PRODUCT:
        shutil.copytree(ROOT / each, folder / each, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip(), encoding="utf-8")
    if "anthropic" not in files["prompts/models.toml"]:
        (folder / "workers" / "providers" / "anthropic.py").unlink()
    return folder
