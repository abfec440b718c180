"""`python -m workers`: one worker, until SIGTERM or Ctrl-C; it outlives Redis and Postgres."""

import sys

from service.signals import leave, on_end


def main() -> int:
    """A signal during the imports, which take a second or two, ends it as orderly: nothing is in hand yet."""
    on_end(leave)
    from workers.boot import main as boot

    return boot()


if __name__ == "__main__":
    sys.exit(main())
