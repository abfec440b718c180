"""Cancel reaches the worker that runs the event at once; where Redis is away, the sweeper finds out within a second."""

from typing import Final
from uuid import UUID

from redis.asyncio import Redis

from workers.engine.executor import Executor

WAIT_S: Final = 5.0


async def listen(redis: Redis, name: str, executor: Executor) -> None:
    """End the runs of events that somebody cancels, told on the channel `name`, until cancelled itself."""
    async with redis.pubsub() as channel:
        await channel.subscribe(name)
        while True:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=WAIT_S)
            if message is not None and len(message["data"]) == 16:
                executor.drop(UUID(bytes=message["data"]))
