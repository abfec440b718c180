"""`python -m workers`: one worker, until SIGTERM or Ctrl-C; it outlives Redis and Postgres. `… health` checks it."""

import sys

from service.signals import leave, on_end


def main() -> int:
    """A signal during the imports, which take a second or two, ends it as orderly: nothing is in hand yet."""
    if sys.argv[1:2] == ["health"]:
        from workers.health import main as health

        return health(sys.argv[2:])
    on_end(leave)
    from workers.boot import main as boot

    return boot()


if __name__ == "__main__":
    sys.exit(main())
