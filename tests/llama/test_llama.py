"""The service against a server that speaks OpenAI's protocol and that nobody here wrote: llama-cpp-python's.

`make llama` builds it, in an environment of its own, and says where: LLAMA_PYTHON. The model is made here, of chance.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
from msgspec import Struct

import workers.providers
from prompts import Prompts, load
from service.core.settings import Settings
from tests.eventually import eventually
from tests.models import with_keys
from tests.processes import LAST_WORDS, free_port, product_in, started, up_on
from tests.workers.models.asking import BODY, Ledger
from workers.models.client import Llm, open_llm
from workers.providers import discover

pytestmark = pytest.mark.llama

HEAD: Final = '+++\nmodel = "local"\nmax_tokens = 500\nvariables = ["text"]\n+++\n'
MODELS: Final = '{alias} = [{{ provider = "local", model = "tiny", usd_per_million = {{ input = 1, output = 1 }} }}]\n'
ALIASES: Final = "".join(MODELS.format(alias=alias) for alias in ("fast", "smart", "local", "embed"))


class Sorted(Struct, frozen=True):
    intent: Literal["refund", "login", "other"]
    urgent: bool
    tags: list[Literal["a", "b"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """Its address, from when it was started."""
    python = os.environ["LLAMA_PYTHON"]
    model, port = folder / "tiny.gguf", free_port()
    subprocess.run([python, str(Path(__file__).with_name("tiny.py")), str(model)], check=True, timeout=60)
    assert model.stat().st_size < 1_000_000
    options = ("--model_alias", "tiny", "--embedding", "true", "--chat_format", "chatml", "--n_ctx", "4096")
    where = ("--host", "127.0.0.1", "--port", str(port), "--n_threads", "1")
    command = (python, "-m", "llama_cpp.server", "--model", str(model), *options, *where)
    with started(command, folder / "server.log", {}):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
async def local(server: str) -> Settings:
    async def answers() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                return (await http.get(f"{server}/models")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(answers, 60)
    return with_keys(Settings(), local_base_url=server, local_json="json_object")


@pytest.fixture
def told(tmp_path: Path) -> Prompts:
    (tmp_path / "models.toml").write_text(ALIASES)
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "v1.md").write_text(HEAD + BODY)
    return load(tmp_path)


@pytest.fixture
async def llm(local: Settings, told: Prompts) -> AsyncIterator[Llm]:
    async with open_llm(local, told, None, discover(workers.providers)) as opened:
        yield opened


async def test_text_and_json_by_type(llm: Llm) -> None:
    ledger = Ledger()
    text = await llm.ask("sort", {"text": "I paid twice"}, returns=str, call_log=ledger)
    assert text.isascii()
    reply = await llm.ask("sort", {"text": "I paid twice"}, returns=Sorted, call_log=ledger)
    assert isinstance(reply, Sorted)
    assert ledger.outcomes == ["ok", "ok"]
    assert all(call.tokens_in > 20 and call.tokens_out > 0 and not call.simulated for call in ledger.calls)
    assert ledger.calls[1].reply


async def test_embeddings(llm: Llm) -> None:
    ledger = Ledger()
    (one,) = await llm.embed(["I paid twice"], call_log=lambda: ledger)
    (same,) = await llm.embed(["I paid twice"], call_log=lambda: ledger)
    (other,) = await llm.embed(["My password"], call_log=lambda: ledger)
    assert len(one) == 32
    assert one == same != other
    assert [call.tokens_in > 0 for call in ledger.calls] == [True] * 3


NODE: Final = '''"""Sorted by a model."""

from typing import Literal

from msgspec import Struct

from schemas.events.chat import MessageReceived
from workers.kit import Run


class Sorted(Struct, frozen=True):
    intent: Literal["refund", "login", "other"]
    urgent: bool
    said: str
    near: list[float]


class Intent(Struct, frozen=True):
    intent: Literal["refund", "login", "other"]
    urgent: bool


async def sort(run: Run, message: MessageReceived) -> Sorted:
    intent = await run.llm.ask("sort", returns=Intent, model="local", text=message.text)
    said = await run.llm.ask("sort", returns=str, model="local", text=message.text)
    (near,) = await run.llm.embed([message.text])
    return Sorted(intent.intent, intent.urgent, said, near)
'''
PIPELINE: Final = '''"""Sorted."""

from schemas.events.chat import MessageReceived
from workers.kit import Pipeline
from workers.nodes.sort import sort

sorting = Pipeline(on=MessageReceived, flow=[sort])
'''


async def test_the_whole_service(local: Settings, settings: Settings, tmp_path: Path) -> None:
    """An event in over HTTP, a pipeline on the real worker program, a result, and its calls in the ledger."""
    copy = product_in(tmp_path / "clone")
    (copy / "prompts" / "models.toml").write_text(ALIASES)
    (copy / "prompts" / "sort").mkdir()
    (copy / "prompts" / "sort" / "v1.md").write_text(HEAD + BODY)
    (copy / "workers" / "nodes" / "sort.py").write_text(NODE)
    (copy / "workers" / "pipelines" / "chat.py").write_text(PIPELINE)
    environ = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "LOCAL_BASE_URL": local.providers["LOCAL_BASE_URL"],
        "LOCAL_JSON": "json_object",
    }
    with up_on(tmp_path, environ, copy) as up:
        await up.program.says(LAST_WORDS)
        async with up.client() as http:
            message = {"type": "message.received", "partitionkey": "ann", "data": {"text": "I paid twice"}}
            event_id = (await http.post("/events", json=message)).json()["event_id"]

            async def ended() -> dict[str, Any] | None:
                shown: dict[str, Any] = (await http.get(f"/events/{event_id}")).json()
                return shown if shown["status"] in ("succeeded", "dead") else None

            event = await eventually(ended, 60)
    assert event
    assert event["status"] == "succeeded", event["error"]
    assert event["result"]["intent"] in ("refund", "login", "other")
    assert len(event["result"]["near"]) == 32
    calls = [moment["detail"] for moment in event["timeline"] if moment["what"] == "call"]
    assert [(call["prompt"], call["provider"], call["model"], call["outcome"]) for call in calls] == [
        ("sort", "local", "tiny", "ok"),
        ("sort", "local", "tiny", "ok"),
        ("(embed)", "local", "tiny", "ok"),
    ]
    assert all(call["tokens_in"] > 0 and not call["simulated"] and call["cost_usd"] > 0 for call in calls)
    assert all(call["tokens_out"] > 0 for call in calls[:2])
