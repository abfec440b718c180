"""The programs of `callboard up` as children: the API, the workers; each started again when it ends."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import httpx
from msgspec import Struct
from msgspec.structs import replace

import sql
from service.core.errors import StartError
from service.core.migrate import migrate
from service.core.preflight import check_port, check_redis
from service.core.program import MISFIT
from service.core.redis_owner import adopt
from service.core.servers import backoff_s, connect
from service.core.settings import Settings, variable
from service.embedded import embedded, on_this_machine
from service.embedded.process import CHILD

READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.1
QUICK_S: Final = 5.0
SQL: Final = sql.queries("health")

log = logging.getLogger("callboard.up")


class Child:
    def __init__(self, name: str, module: str, environment: dict[str, str], stop_s: float) -> None:
        self.name: Final = name
        self._module: Final = module
        self._environment: Final = environment
        self._stop_s: Final = stop_s
        self._process: asyncio.subprocess.Process | None = None
        self._restart: Final = asyncio.Event()
        self.failed: StartError | None = None

    async def run(self) -> None:
        """Until cancelled; then the program is asked to end, and killed when it does not."""
        tries = 0
        try:
            while True:
                begun = asyncio.get_running_loop().time()
                self._restart.clear()
                self._process = await self._spawn()
                status = await self._process.wait()
                if self._restart.is_set():
                    tries = 0
                    continue
                self.failed = StartError(f"the {self.name} ended with status {status}; its sentence is above.")
                if status == MISFIT:
                    log.warning("the %s starts again when a file changes", self.name)
                    await self._restart.wait()
                    continue
                tries = 1 if asyncio.get_running_loop().time() - begun > QUICK_S else tries + 1
                await asyncio.sleep(backoff_s(tries, 0.5, 5.0))
                log.warning("the %s had ended with status %d and starts again", self.name, status)
        finally:
            await asyncio.shield(self._end())

    async def restart(self) -> None:
        """End the program, so that it starts again with what is in the files now."""
        self._restart.set()
        await self._end()

    async def _spawn(self) -> asyncio.subprocess.Process:
        """In a session of its own, so that Ctrl-C reaches us first; where the system can, it ends when we die."""
        ids = (str(os.getpid()), str(int(signal.SIGTERM)), str(os.getuid()), str(os.getgid()))
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(CHILD), *ids),
            *(sys.executable, "-m", self._module),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._stop_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Running(Struct, frozen=True):
    settings: Settings
    api: Child
    workers: list[Child]


@asynccontextmanager
async def all_running(settings: Settings, workers: int) -> AsyncIterator[Running]:
    """Servers, schema, API and workers, ready; all ended in order when the block ends.

    Raises StartError with one sentence where a part can't start.
    """
    check_port(settings)
    async with AsyncExitStack() as stack:
        full_settings = await stack.enter_async_context(embedded(decided(settings)))
        await migrate(full_settings)
        # A Redis that was started here is nobody else's: whichever database came to this data folder has it.
        await (check_redis(full_settings) if settings.redis_url else adopt(full_settings))
        environment = environment_of(full_settings)
        api_environment = {**environment, variable("local_token"): full_settings.local_token}
        api = Child("API", "service", api_environment, STOP_TIMEOUT_S)
        hands = [
            Child("worker", "workers", environment, full_settings.grace_s + STOP_TIMEOUT_S) for _ in range(workers)
        ]
        tasks = [asyncio.create_task(child.run()) for child in (api, *hands)]
        stack.push_async_callback(_end_all, tasks)
        await _until_ready(full_settings, [api, *hands])
        yield Running(full_settings, api, hands)


def decided(settings: Settings) -> Settings:
    """`auto` simulates where no provider's key is set, but never on a database that somebody brings."""
    if settings.simulate != "auto":
        return settings
    return replace(settings, simulate="off" if settings.has_provider_key or settings.database_url else "on")


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of the API and the workers: our own, with the values that were decided here.

    It is without the owner's address, for they don't migrate.
    """
    local = on_this_machine(settings)
    names = ("database_url", "redis_url", "host", "port", "simulate", "web_allow")
    owner = variable("database_owner_url")
    environment = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") != owner}
    return environment | {variable(name): str(getattr(local, name)) for name in names}


def address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


async def _until_ready(settings: Settings, children: list[Child]) -> None:
    """The API answers and a worker has registered; or a child ended, whose sentence stands on the terminal by then."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S), httpx.AsyncClient(base_url=address(settings)) as http:
            while not await _is_ready(settings, http, with_worker=len(children) > 1):
                for child in children:
                    if child.failed:
                        raise child.failed
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise StartError(f"API and worker were not ready within {READY_TIMEOUT_S:g} s.") from None


async def _is_ready(settings: Settings, http: httpx.AsyncClient, *, with_worker: bool) -> bool:
    """By the workers' own rows: the API tells of them to whoever has a key."""
    try:
        if (await http.get("/readyz")).status_code != 200:
            return False
    except httpx.HTTPError:
        return False
    if not with_worker:
        return True
    connection = await connect(settings, "up")
    try:
        return bool(await connection.fetch(SQL["workers"]))
    finally:
        await connection.close()


async def _end_all(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
