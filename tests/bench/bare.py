"""What the worker is measured against: a loop of asyncio and the SDK that makes the same calls and keeps nothing.

python -m tests.bench.bare default|aiohttp EVENTS SLOTS     prints {"cpu_s": …, "s": …}
"""

import asyncio
import sys
import time
from typing import Any, Final

import openai
from msgspec import json

from tests.bench.worker import MODEL

WARM: Final = 60


async def main(transport: str, events: int, slots: int) -> None:
    http: Any = {"http_client": openai.DefaultAioHttpClient()} if transport == "aiohttp" else {}
    async with openai.AsyncOpenAI(timeout=60.0, **http) as client:
        free = asyncio.Semaphore(slots)

        async def call(n: int) -> str | None:
            said = await client.chat.completions.create(
                model=MODEL,
                max_completion_tokens=200,
                messages=[
                    {"role": "system", "content": "You sort the messages of customers."},
                    {"role": "user", "content": f"Message {n}: My card was charged twice this month."},
                ],
            )
            return said.choices[0].message.content

        async def event() -> None:
            async with free:
                await asyncio.gather(*map(call, range(3)))

        await asyncio.gather(*(event() for _ in range(WARM)))
        cpu_s, begun = time.process_time(), time.monotonic()
        await asyncio.gather(*(event() for _ in range(events)))
        print(json.encode({"cpu_s": time.process_time() - cpu_s, "s": time.monotonic() - begun}).decode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
