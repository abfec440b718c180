"""Postgres and Redis for one machine: started where no address is given, and found by other programs."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from service.core import postgres_url
from service.core.destinations import ON_THIS_MACHINE
from service.core.errors import StartError
from service.core.redis_address import redis_address
from service.core.settings import Settings
from service.embedded.data_dir import explain_errors
from service.embedded.postgres import as_runner, start_postgres
from service.embedded.process import Server, command_line, stop
from service.embedded.redis import start_redis

__all__ = ["Server", "embedded", "on_this_machine", "running", "start_postgres", "start_redis", "stop"]

MISSING: Final = {"database_url": ("Postgres", "DATABASE_URL"), "redis_url": ("Redis", "REDIS_URL")}


@asynccontextmanager
async def embedded(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with both addresses; what they lack is started, and ended when the block ends.

    Raises StartError where one that is given is none.
    """
    _check(settings)
    if settings.database_url and settings.redis_url:
        yield settings
        return
    async with AsyncExitStack() as undo:
        addresses: dict[str, str] = {}
        if not settings.database_url:
            postgres = await start_postgres(settings.data_path / "postgres")
            undo.push_async_callback(stop, postgres)
            addresses |= {"database_url": as_runner(postgres.url), "database_owner_url": postgres.url}
        if not settings.redis_url:
            redis = await start_redis(settings.data_path / "redis")
            undo.push_async_callback(stop, redis)
            addresses["redis_url"] = redis.url
        _tell(settings, addresses)
        undo.callback(_addresses(settings).unlink, missing_ok=True)
        yield replace(settings, **addresses)


def running(settings: Settings) -> Settings:
    """The settings with both addresses, and with `simulate`, of the running `make up` of the same data folder.

    Raises StartError with one sentence where one is missing and none runs, or is none.
    """
    _check(settings)
    record = _read(settings)
    if record:
        settings = on_this_machine(settings)
    values = {name: getattr(settings, name) or record.get(name, "") for name in MISSING}
    if not settings.database_url:
        values["database_owner_url"] = record.get("database_owner_url", "")
    for name in MISSING:
        if not values[name]:
            what, variable = MISSING[name]
            raise StartError(f"No {what}: set {variable}, or start `make up` (its data folder: {settings.data_path}).")
    if settings.simulate == "auto" and not settings.database_url:
        values["simulate"] = record.get("simulate", "auto")
    return replace(settings, **values)


def on_this_machine(settings: Settings) -> Settings:
    """What belongs to `callboard up` on loopback is on its user's own machine: `run.web` may post to others there."""
    if not settings.on_loopback:
        return settings
    return replace(settings, web_allow=",".join(filter(None, (settings.web_allow, ON_THIS_MACHINE))))


def _check(settings: Settings) -> None:
    """What is no address would be taken for a server that is away; it may hold a password, so it is not shown."""
    addresses = {"DATABASE_URL": settings.database_url, "DATABASE_OWNER_URL": settings.database_owner_url}
    wrong = [fault for name, url in addresses.items() if url for fault in postgres_url.faults(url, name)]
    try:
        if settings.redis_url:
            redis_address(settings.redis_url)
    except StartError as error:
        wrong.append(str(error))
    if wrong:
        raise StartError("\n".join(wrong))


def _addresses(settings: Settings) -> Path:
    return settings.data_path / "addresses.json"


def _tell(settings: Settings, addresses: dict[str, str]) -> None:
    """Writes the addresses of our own servers, not the user's, which may hold a password; and `simulate`."""
    path = _addresses(settings)
    fresh = path.with_suffix(".new")
    with explain_errors(path), os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(
            {"database_url": "", "redis_url": "", **addresses, "simulate": settings.simulate, "pid": os.getpid()}, file
        )
    fresh.replace(path)


def _read(settings: Settings) -> dict[str, str]:
    with suppress(FileNotFoundError, ValueError):
        record: dict[str, str | int] = json.loads(_addresses(settings).read_text(encoding="utf-8"))
        if command_line(int(record["pid"])):
            names = (*MISSING, "database_owner_url", "simulate")
            return {name: str(record[name]) for name in names if name in record}
    return {}
