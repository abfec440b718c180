"""Keys for tests, made as the command line makes them."""

from datetime import timedelta
from typing import Final

from service.access.keys import KEY, SQL, mint, presented
from service.core.servers import connect
from service.core.settings import Settings

TOKEN: Final = f"cl_{'t' * 43}"
AT_HOME: Final = {"Authorization": f"Bearer {TOKEN}"}
"""What a test's own client sends to an API that was started with TOKEN."""
AUTHORIZED: Final = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
AS_UP_DOES: Final = {"CALLBOARD_LOCAL_TOKEN": TOKEN, "CALLBOARD_SIMULATE": "on"}
"""What `callboard up` sets for the programs that it starts."""


async def make_key(
    settings: Settings,
    *scopes: str,
    tenant: str = "default",
    lasts: timedelta | None = None,
    rate: str | None = None,
    max_open: int | None = None,
) -> str:
    key = mint(KEY)
    told = presented(key)
    connection = await connect(settings, "test")
    try:
        who = (told.prefix, tenant, "", told.hash, list(scopes), lasts, "test")
        await connection.fetch(SQL["create"], *who, rate, max_open)
    finally:
        await connection.close()
    return key


async def revoke(settings: Settings, key: str) -> None:
    connection = await connect(settings, "test")
    try:
        await connection.fetch(SQL["revoke"], presented(key).prefix, "test")
    finally:
        await connection.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
