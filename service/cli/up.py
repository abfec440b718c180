"""`callboard up`: all of it on this machine, in one terminal."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from shlex import quote
from typing import Any, Final

import click
from msgspec import json
from msgspec.structs import replace

from schemas.origin import USER_PLACES
from service.access.local_token import FILE, local_token
from service.cli.api_client import open_client
from service.cli.parts import Running, address, all_running, decided
from service.core.declared import complete, variables_of_providers
from service.core.errors import CallboardError
from service.core.log import setup
from service.core.redis_address import RedisAddress, redis_address
from service.core.release import ROOT
from service.core.settings import Settings, load
from service.core.streams import names_of
from service.embedded.redis import redis_cli

SEED: Final = Path(__file__).parent / "messages" / "seed.jsonl"
SEED_PATH: Final = "/collections/seed"
PLACES: Final = (*USER_PLACES, "prompts")
SEED_TIMEOUT_S: Final = 30.0
EXAMPLE: Final = '{"ticket_id":"T-1","subject":"Cannot log in","body":"My password is rejected."}'


@click.command()
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0, 64), help="How many workers; 0: yours.")
@click.option("--no-token", is_flag=True, help="Let nobody in without a key, you neither.")
def up(workers: int, no_token: bool) -> None:
    """Start everything on this machine: Postgres, Redis, the API and workers. Ctrl-C ends it all; the data stays.

    Nothing has to be installed or set before. With DATABASE_URL or REDIS_URL set, that one is used instead.
    Workers start again when a file of yours changes (events, nodes, pipelines, prompts).
    With --workers 0 run `callboard worker` in another terminal: there breakpoint() works.

    \b
    Example:  callboard up --workers 2
    """
    setup()
    settings = decided(load(os.environ))
    refuse_no_model(settings)
    list_variables()
    sys.exit(asyncio.run(_up(with_token(settings, none=no_token), workers)))


def list_variables() -> None:
    if added := complete():
        click.echo(f"deploy/env.example now lists {', '.join(added)}")


def with_token(settings: Settings, *, none: bool = False) -> Settings:
    return replace(settings, local_token="" if none else local_token(settings.data_path))


def refuse_no_model(settings: Settings) -> None:
    keyless = any(not known.keys for known in variables_of_providers().values())
    if not settings.simulated and not settings.has_provider_key and not keyless:
        raise CallboardError(
            "no model can answer: set ANTHROPIC_API_KEY, OPENAI_API_KEY or what deploy/env.example names for another "
            "provider, or CALLBOARD_SIMULATE=on for simulated answers (beside a DATABASE_URL only then)."
        )


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Settings]:
    """A Callboard for the duration of a block, on the port of the settings; yields settings with its address."""
    async with all_running(with_token(settings), 1) as live:
        await seed(live.settings)
        yield replace(live.settings, url=address(live.settings))


async def _up(settings: Settings, workers: int) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    main_task, stopped = asyncio.create_task(_run(settings, workers)), asyncio.create_task(stop.wait())
    await asyncio.wait({main_task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    main_task.cancel()
    with suppress(asyncio.CancelledError):
        await main_task
    return 0


async def _run(settings: Settings, workers: int) -> None:
    async with all_running(settings, workers) as live:
        await seed(live.settings)
        click.echo(_banner(live))
        await _watch(live)


async def seed(settings: Settings) -> None:
    """Puts the examples of the worked example into the collection `seed`, where that is empty.

    They are documents and no events: any key that sends events can name any source, so that no source can be trusted.
    """
    documents = [_example(line) for line in SEED.read_text(encoding="utf-8").splitlines()]
    known = replace(settings, url=address(settings), api_key=settings.local_token or settings.api_key)
    async with asyncio.timeout(SEED_TIMEOUT_S), open_client(known) as http:
        answer = await http.post(f"{SEED_PATH}/search", json={"query": "a", "mode": "vector", "k": 1})
        if answer.is_success and not answer.json()["items"]:
            answer = await http.put(f"{SEED_PATH}/documents", json={"documents": documents})
    if answer.status_code in (401, 403):
        need = "that takes CALLBOARD_API_KEY, a key with the scopes `documents` and `read`."
        click.echo(f"No examples were put into the collection `seed`: {need}", err=True)
        return
    answer.raise_for_status()


def _example(line: str) -> dict[str, Any]:
    message = json.decode(line, type=dict[str, str])
    name = blake2b(line.encode(), digest_size=8).hexdigest()
    return {"id": name, "text": message["text"], "metadata": {"label": message["label"]}}


def _banner(live: Running) -> str:
    settings = live.settings
    app_url = address(settings)
    redis = redis_address(settings.redis_url)
    event = f'{{"type":"ticket.opened","data":{EXAMPLE}}}'
    where = "" if settings.url == app_url else f"CALLBOARD_URL={app_url} "
    if settings.local_token and settings.data_dir != Settings().data_dir:
        where += f"CALLBOARD_DATA_DIR={quote(str(settings.data_path))} "
    page, header = app_url + "/", "$CALLBOARD_API_KEY"
    if settings.local_token:
        page, header = f"{page}?token={settings.local_token}", f"$(cat {quote(str(settings.data_path / FILE))})"
    return f"""
Callboard is up at {app_url}

  page      {page}
  send      {where}.venv/bin/callboard send ticket.opened --wait \\
              --data '{EXAMPLE}'
  curl      curl -i {app_url}/events -H 'Content-Type: application/json' \\
              -H "Authorization: Bearer {header}" \\
              -d '{event}'
  Redis     {redis.path or f"{redis.host}:{redis.port}"}
            {_redis_cli(redis)} XADD {names_of(settings).ingest} '*' event \\
              '{event}'
  answers   {_answers(settings)}
  workers   {_workers(live)}
  data      {settings.data_path}

Ctrl-C ends it all; the data stays.
"""


def _redis_cli(redis: RedisAddress) -> str:
    """The password is typed in: no terminal and no list of processes gets to show it."""
    words = [redis_cli(), *(("-s", quote(redis.path)) if redis.path else ("-h", redis.host, "-p", str(redis.port)))]
    words += ["--tls"] if redis.secure else []
    words += [f"--cacert {quote(str(redis.tls['ssl_ca_certs']))}"] if "ssl_ca_certs" in redis.tls else []
    words += [f"--user {quote(redis.username)}"] if redis.username else []
    words += ["--askpass"] if redis.password else []
    return " ".join([*words, f"-n {redis.db}"])


def _workers(live: Running) -> str:
    if not live.workers:
        return "none: run `.venv/bin/callboard worker` in another terminal, where breakpoint() works"
    return f"{len(live.workers)}, started again when a file in {', '.join(PLACES)} changes"


def _answers(settings: Settings) -> str:
    if not settings.simulated:
        return "from the providers whose keys are set"
    why = "CALLBOARD_SIMULATE is on" if settings.has_provider_key else "no provider key is set"
    return f"simulated: {why} (workers/models/README.md)"


async def _watch(live: Running) -> None:
    """Start workers again when a file in the user's places changes, and the API when an event does."""
    from watchfiles import PythonFilter, awatch

    watch_filter = PythonFilter(extra_extensions=(".md", ".toml"))
    folders = [ROOT / folder for folder in PLACES]
    async for changes in awatch(*folders, watch_filter=watch_filter, debounce=300):
        names = sorted({str(Path(path).relative_to(ROOT)) for _, path in changes})
        click.echo(f"{', '.join(names[:3])} changed: workers start again")
        list_variables()
        schemas = any(name.startswith("schemas/") for name in names)
        children = [*live.workers, live.api] if schemas else live.workers
        await asyncio.gather(*(child.restart() for child in children))
