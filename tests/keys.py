"""Keys for tests, made as the command line makes them."""

from datetime import timedelta

from service.keys import KEY, SQL, mint, presented
from service.resources import connect
from service.settings import Settings


async def make_key(settings: Settings, *scopes: str, tenant: str = "default", lasts: timedelta | None = None) -> str:
    key = mint(KEY)
    told = presented(key)
    connection = await connect(settings, "test")
    try:
        await connection.fetch(SQL["create"], told.prefix, tenant, "", told.hash, list(scopes), lasts, "test")
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
