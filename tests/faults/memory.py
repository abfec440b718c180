"""A worker with little memory: in a cgroup of its own, version 2 or 1, as a container is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path("/sys/fs/cgroup")


@contextmanager
def small_memory(pid: int, size: int) -> Iterator[Path]:
    """The process `pid` and what it starts may use `size` bytes more; whoever uses more is killed by the kernel."""
    with small_group(size) as group:
        (group / "cgroup.procs").write_text(str(pid))
        yield group


@contextmanager
def small_group(size: int) -> Iterator[Path]:
    """A group whose members may use `size` bytes together; `joining` starts a program as one.

    Skips the test where no cgroup can be made, but for CI, where that is a failure.
    """
    group = _made(size)
    try:
        yield group
    finally:
        for each in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(each)
        group.rmdir()


def joining(group: Path) -> tuple[str, ...]:
    """What stands before a command, so that all of its memory is the group's."""
    return ("sh", "-c", f'echo $$ > {group / "cgroup.procs"} && exec "$@"', "sh")


def killed(group: Path) -> int:
    """How often the kernel killed a member for its memory."""
    version_2 = (ROOT / "cgroup.controllers").exists()
    told = (group / ("memory.events" if version_2 else "memory.oom_control")).read_text()
    return int(dict(line.split() for line in told.splitlines())["oom_kill"])


def peak_mb(pid: int) -> float:
    """The most that it ever held; of what has ended, nothing."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int((status.partition("VmHWM:")[2].split() or ["0"])[0]) / 1024


def _made(size: int) -> Path:
    version_2 = (ROOT / "cgroup.controllers").exists()
    group = (ROOT if version_2 else ROOT / "memory") / f"callboard-test-{os.getpid()}"
    try:
        group.mkdir(exist_ok=True)
        (group / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(size))
        # The one bounds swap, the other both together; without swap in the kernel there is neither.
        swap = (group / "memory.swap.max", "0") if version_2 else (group / "memory.memsw.limit_in_bytes", str(size))
        if swap[0].exists():
            swap[0].write_text(swap[1])
    except OSError as error:
        reason = f"no cgroup with a bound of memory can be made: {error}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return group
