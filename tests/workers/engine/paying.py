"""A Callboard whose calls cost money: real SDKs with a key, to a server of the test's own in a provider's place."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prompts import Prompts, load
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.listening import listening_on
from tests.models import with_keys
from tests.programs import program_of
from workers.engine.supervisor import Program
from workers.kit import Pipeline

Answer = Callable[[], Awaitable[Response]]

MAX_TOKENS: Final = 1000
TOKENS_OUT: Final = 100
# A dollar for a thousand tokens: a call costs $0.10, and may cost more than $1.
PRICE: Final = "{ input = 0, output = 1000 }"
COST_USD: Final = TOKENS_OUT / 1000
MOST_USD: Final = MAX_TOKENS / 1000


class Provider:
    """Counts what it is asked; each reply is another text. `answer` may be put in the place of the usual one."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Answer = self.well

    async def well(self) -> Response:
        return said(f"reply {self.asked}")

    async def embed(self, request: Request) -> Response:
        self.asked += 1
        texts = (await request.json())["input"]
        data = [{"index": index, "embedding": [float(self.asked), 0.1]} for index in range(len(texts))]
        return JSONResponse({"data": data, "usage": {"prompt_tokens": TOKENS_OUT, "total_tokens": TOKENS_OUT}})

    async def handle(self, _: Request) -> Response:
        self.asked += 1
        return await self.answer()


def said(text: str) -> Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return JSONResponse(
        {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": TOKENS_OUT, "total_tokens": 110}}
    )


@asynccontextmanager
async def open_provider() -> AsyncIterator[tuple[Provider, str]]:
    provider = Provider()
    routes = {"/v1/chat/completions": provider.handle, "/v1/embeddings": provider.embed}
    app = Starlette(routes=[Route(path, handle, methods=["POST"]) for path, handle in routes.items()])
    async with listening_on(app, force=True, lifespan="off") as url:
        yield provider, f"{url}/v1"


def prompts_in(folder: Path, price: str = PRICE, max_tokens: int = MAX_TOKENS) -> Prompts:
    """One prompt, `say`, at one model with this price for a million tokens."""
    target = f'{{ provider = "openai", model = "ours", usd_per_million = {price} }}'
    (folder / "say").mkdir(exist_ok=True)
    embed = '{ provider = "openai", model = "vectors", usd_per_million = { input = 1000, output = 0 } }'
    (folder / "models.toml").write_text(f"fast = [{target}]\nembed = [{embed}]\n")
    head = f'+++\nmodel = "fast"\nmax_tokens = {max_tokens}\nvariables = ["text"]\n+++\n'
    (folder / "say" / "v1.md").write_text(head + "Say {{ text }}.\n")
    return load(folder)


def paying(settings: Settings, url: str, budget_day_usd: float) -> Settings:
    bounded = replace(settings, simulate="off", budget_day_usd=budget_day_usd, grace_s=1)
    return with_keys(bounded, openai_api_key="k", openai_base_url=url)


def program(settings: Settings, folder: Path, job: Pipeline, **prompt: Any) -> Program:
    return replace(program_of(settings, job=job), prompts=prompts_in(folder, **prompt))


@asynccontextmanager
async def open_shop(
    settings: Settings, folder: Path, job: Pipeline, *, budget_day_usd: float = 1000.0, workers: int = 1, **prompt: Any
) -> AsyncIterator[tuple[Board, Provider]]:
    """A Callboard that runs `job`, and the provider it pays."""
    async with open_provider() as (provider, url):
        told = paying(settings, url, budget_day_usd)
        async with board_on(told, program(told, folder, job, **prompt), workers=workers) as board:
            yield board, provider


def timeline_calls(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [moment["detail"] for moment in event["timeline"] if moment["what"] == "call"]
