"""Who imports the simulator: a worker whose answers are simulated, and no other."""

import sys
from typing import Final

import pytest

from service.core.settings import Settings
from tests.processes import run

WORKER: Final = """
import asyncio, os, sys

from service.core.settings import load
from workers.bootstrap import check_models, program
from workers.engine.supervisor import open_worker


async def main():
    whole = program(load(os.environ))
    check_models(whole)
    async with open_worker(whole):
        print("workers.simulator" in sys.modules)


asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("environ", "imported"),
    [({"OPENAI_API_KEY": "sk-test", "CALLBOARD_SIMULATE": "off"}, "False"), ({"CALLBOARD_SIMULATE": "on"}, "True")],
    ids=["with a key", "simulated"],
)
def test_the_simulator_is_imported_only_where_it_is_asked_for(
    settings: Settings, environ: dict[str, str], imported: str
) -> None:
    servers = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    done = run((sys.executable, "-c", WORKER), {**servers, **environ})
    assert (done.returncode, done.stdout.strip()) == (0, imported), done.stderr
