"""A worker whose events ask strangers for answers: python -m tests.unfolding FOLDER, which is for its prompts."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from msgspec.structs import replace

import prompts
from schemas import Event
from service.core.log import setup
from service.core.settings import load
from tests.programs import program_of
from workers.bootstrap import run
from workers.kit import Pipeline, Run

PROMPT: Final = '+++\nmodel = "openai"\nmax_tokens = 100\nvariables = ["n"]\n+++\n--- user ---\nMessage {{ n }}\n'
MODELS: Final = """
openai = [{ provider = "openai", model = "gpt-6-luna" }]
anthropic = [{ provider = "anthropic", model = "claude-haiku-5-5" }]
"""


class PostWanted(Event, tag="post.wanted", frozen=True):
    url: str


class AnswerWanted(Event, tag="answer.wanted", frozen=True):
    model: str
    n: int


class NothingWanted(Event, tag="nothing.wanted", frozen=True):
    pass


async def post(run: Run, event: PostWanted) -> int:
    return (await run.web.post(event.url, json={}, timeout_s=30)).status


async def ask(run: Run, event: AnswerWanted) -> str:
    return await run.llm.ask("ask", returns=str, model=event.model, n=event.n)


async def nothing(event: NothingWanted) -> str:
    return "done"


def main(folder: Path) -> None:
    setup()
    (folder / "ask").mkdir(parents=True)
    (folder / "models.toml").write_text(MODELS)
    (folder / "ask" / "v1.md").write_text(PROMPT)
    pipelines = {
        "posts": Pipeline(on=PostWanted, flow=[post]),
        "answers": Pipeline(on=AnswerWanted, flow=[ask]),
        "nothings": Pipeline(on=NothingWanted, flow=[nothing]),
    }
    asyncio.run(run(replace(program_of(load(os.environ), **pipelines), prompts=prompts.load(folder))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
