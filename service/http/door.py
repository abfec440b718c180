"""What every endpoint is handed, and how it answers."""

from typing import Any, Final

import msgspec
from msgspec import Struct, json
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response

from prompts import Prompts
from schemas.catalog import Catalog
from service.follow import Followers
from service.http.measured import Measured
from service.intake import Intake
from service.keys import Keys
from service.meters import Meters
from service.resources import Pool
from service.settings import Settings

JSON: Final = "application/json"


class Door(Struct, frozen=True):
    """Made once in the lifespan; `request.state.door`."""

    settings: Settings
    catalog: Catalog
    prompts: Prompts
    intake: Intake
    keys: Keys
    pool: Pool
    redis: Redis
    meters: Meters
    measured: Measured
    followers: Followers


def door(request: Request) -> Door:
    found: Door = request.state.door
    return found


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.encode(body), status, headers, media_type=JSON)


def raw(text: str | None) -> msgspec.Raw | None:
    """A JSON column as it is, without decoding it only to encode it again."""
    return None if text is None else msgspec.Raw(text.encode())
