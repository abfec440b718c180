"""The simulator alone, for `callboard simulator`: a port, and its behaviour as JSON."""

import asyncio
import signal
import sys
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from service.core.errors import CallboardError, SettingsError
from service.core.log import setup
from workers.simulator import faults, limits
from workers.simulator.behaviour import Behaviour
from workers.simulator.serve import running_simulator

USAGE: Final = 2


class Asked(Struct, frozen=True, forbid_unknown_fields=True):
    port: int = 0
    behaviour: Behaviour = msgspec.field(default_factory=Behaviour)
    limits: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def main() -> int:
    setup()
    try:
        options = msgspec.json.decode("".join(sys.argv[1:]) or "{}", type=Asked)
        return asyncio.run(_run(options.port, _behaviour(options)))
    except (SettingsError, msgspec.ValidationError) as error:
        print(f"callboard simulator: {error}", file=sys.stderr)
        return USAGE
    except CallboardError as error:
        print(f"callboard simulator: {error}", file=sys.stderr)
        return 1


def _behaviour(options: Asked) -> Behaviour:
    allowed, on = map(limits.parse, options.limits), map(faults.parse, options.faults)
    return replace(options.behaviour, limits=tuple(allowed), faults=tuple(on))


async def _run(port: int, behaviour: Behaviour) -> int:
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with running_simulator(port, behaviour=behaviour) as url:
        print(f"Simulated models answer at {url}. Any key does:", flush=True)
        print(f"  OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=simulated", flush=True)
        print(f"  ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=simulated", flush=True)
        await over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
