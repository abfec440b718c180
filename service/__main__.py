"""`python -m service`: the API, until SIGTERM."""

import signal
import sys


def main() -> int:
    """A signal during the imports, which take a second, ends it as orderly: nothing is accepted yet."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: sys.exit(0))
    from service.http.serve import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
