"""Run as a program: becomes the server it is given, as an ordinary user, with its parent's end as its own."""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(parent: str, ending: str, uid: str, gid: str, *command: str) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    os.umask(0o077)
    # After setuid, which forgets it, and before exec, which keeps it. Elsewhere the next start ends what was left over.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(ending))
        if os.getppid() != int(parent):
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
