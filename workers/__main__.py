"""`python -m workers`: one worker, until SIGTERM or Ctrl-C; it outlives Redis and Postgres."""

import signal
import sys


def main() -> int:
    """A signal during the imports, which take a second or two, ends it as orderly: nothing is in hand yet."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: sys.exit(0))
    from workers.boot import main as boot

    return boot()


if __name__ == "__main__":
    sys.exit(main())
