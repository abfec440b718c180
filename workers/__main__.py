"""`python -m workers`: one worker, until SIGTERM or Ctrl-C; it outlives Redis and Postgres.

`… health` tells whether that of this host is ready, `… check` whether one could start: code, prompts, providers' keys.
"""

import sys

from service.core.program import leave, on_end


def main() -> int:
    """A signal during the imports, which take a second or two, ends it as orderly: nothing is in hand yet."""
    if sys.argv[1:2] == ["health"]:
        from workers.health import main as health

        return health(sys.argv[2:])
    on_end(leave)
    from workers import bootstrap

    return bootstrap.check() if sys.argv[1:2] == ["check"] else bootstrap.main()


if __name__ == "__main__":
    sys.exit(main())
