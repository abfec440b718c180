"""`python -m service`: the API, until SIGTERM."""

import sys

from service.core.program import leave, on_end


def main() -> int:
    """A signal during the imports, which take a second, ends it as orderly: nothing is accepted yet."""
    on_end(leave)
    from service.http.serve import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
