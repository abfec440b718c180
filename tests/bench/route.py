"""What accepting events is measured against: one route that decodes a body and inserts one row.

python -m tests.bench.route PORT     with DATABASE_URL
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.identity import uuid7
from tests.bench.posting import Posted

CONNECTIONS: Final = 10
TABLE: Final = "create table if not exists bare (id uuid primary key, type text not null, data bytea not null)"
INSERT: Final = "insert into bare (id, type, data) values ($1, $2, $3)"


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        await pool.execute(TABLE)
        app.state.pool = pool
        yield


async def post(request: Request) -> Response:
    said, event_id = msgspec.json.decode(await request.body(), type=Posted), uuid7()
    await request.app.state.pool.execute(INSERT, event_id, said.type, bytes(said.data))
    return Response(msgspec.json.encode({"event_id": event_id}), 202, media_type="application/json")


if __name__ == "__main__":
    app = Starlette(routes=[Route("/events", post, methods=["POST"])], lifespan=lifespan)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
