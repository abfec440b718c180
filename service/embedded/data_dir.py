"""Where an embedded server lives, and as whom: Postgres refuses root, and an ordinary user can't enter root's home."""

import errno
import logging
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from msgspec import Struct

from service.core.errors import StartError

log = logging.getLogger(__name__)

SOCKET_MAX = 103  # the shortest sun_path there is, macOS's, without its NUL
FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Account(Struct, frozen=True):
    uid: int
    gid: int
    name: str


class DataDir(Struct, frozen=True):
    """A folder of one server: ours, but for `data` in it, which is the account's."""

    folder: Path
    who: Account

    @property
    def data(self) -> Path:
        return self.folder / "data"


@contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """Turns what the file system has against `folder` into a sentence."""
    try:
        yield
    except OSError as error:
        raise StartError(_sentence(error, folder)) from error


def _sentence(error: OSError, folder: Path) -> str:
    if error.errno in FULL:
        return f"The disk that holds {folder} is full. Make room, or set CALLBOARD_DATA_DIR to a folder elsewhere."
    if error.errno in DENIED:
        at = error.filename or folder
        return f"No permission to write {at}. Set CALLBOARD_DATA_DIR to a folder of your own."
    return f"{folder} can't be used ({error}). Set CALLBOARD_DATA_DIR to another folder."


def resolve_data_dir(folder: Path) -> DataDir:
    """The folder itself; as root, where the ordinary user can't get to it, a folder of its own outside."""
    if os.geteuid() != 0:
        _own(folder)
        return DataDir(folder, Account(os.geteuid(), os.getegid(), "ourselves"))
    who = _ordinary()
    home = folder if enterable(folder.parent, who) else _elsewhere(folder, who)
    home.mkdir(exist_ok=True)
    if home.stat().st_uid == 0:
        home.chmod(0o711)
    return DataDir(home, _former(home) or who)


def _former(home: Path) -> Account | None:
    """Whose the data are already, made by an ordinary user or before there was a user `postgres`."""
    for path in (home / "data", home):
        if path.exists() and path.stat().st_uid != 0:
            return Account(path.stat().st_uid, path.stat().st_gid, str(path.stat().st_uid))
    return None


def give(folder: Path, who: Account) -> None:
    """Makes `folder` if need be, for `who` alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, who.uid, who.gid)


def _own(folder: Path) -> None:
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise StartError(f"{folder} belongs to user {owner}. Set CALLBOARD_DATA_DIR to a folder of your own.")


def _ordinary() -> Account:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name)
    raise StartError("Postgres does not run as root, and there is no user `nobody`. Start as an ordinary user.")


def enterable(path: Path, who: Account) -> bool:
    """Whether `who` may go through `path` and every folder above it, and above the file that it is a link to."""
    real = path.resolve()
    return all(_may_enter(folder.stat(), who) for folder in {path, *path.parents, real, *real.parents})


def _may_enter(facts: os.stat_result, who: Account) -> bool:
    if facts.st_uid == who.uid:
        return bool(facts.st_mode & stat.S_IXUSR)
    if facts.st_gid == who.gid:
        return bool(facts.st_mode & stat.S_IXGRP)
    return bool(facts.st_mode & stat.S_IXOTH)


def _elsewhere(folder: Path, who: Account) -> Path:
    """A folder below /var/lib, since /var/tmp is swept; what is temporary stays among the temporary."""
    temporary = Path(tempfile.gettempdir()).resolve()
    lasting = Path("/var/lib") if Path("/var/lib").is_dir() else Path("/var/tmp")  # noqa: S108
    base = temporary if folder.is_relative_to(temporary) else lasting
    parent = base / f"callboard-{sha256(os.fsencode(folder.parent)).hexdigest()[:16]}"
    private(parent, 0o711)
    home = parent / folder.name
    log.warning("As root, %s runs as the user %s, who can't enter %s: its data is in %s.", *_words(folder, who), home)
    return home


def _words(folder: Path, who: Account) -> tuple[str, str, Path]:
    closed = next(parent for parent in (folder.parent, *folder.parents) if not _may_enter(parent.stat(), who))
    return folder.name.capitalize(), who.name, closed


def private(path: Path, mode: int) -> None:
    """Makes `path`; one that somebody else has put there is refused, for its name can be guessed."""
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise StartError(f"{path} is somebody else's. Remove it, then start again.") from None
    else:
        path.chmod(mode)


def socket_folder(data_dir: DataDir, name: str) -> Path:
    """The folder of the socket `name`, closed to others: the data, or a temporary one where its path is too long."""
    if _fits(data_dir.data, name):
        return data_dir.data
    sockets = f"callboard-{sha256(os.fsencode(data_dir.folder)).hexdigest()[:16]}.sockets"
    base = Path(tempfile.gettempdir())
    folder = (base if _fits(base / sockets, name) else Path("/tmp")) / sockets  # noqa: S108
    if folder.exists() and os.geteuid() == 0 and folder.lstat().st_uid == data_dir.who.uid:
        return folder
    private(folder, 0o700)
    give(folder, data_dir.who)
    return folder


def _fits(folder: Path, name: str) -> bool:
    return len(os.fsencode(folder / name)) <= SOCKET_MAX and "," not in str(folder)


def reach(tree: Path, needed: tuple[str, ...], data_dir: DataDir, name: str) -> Path:
    """`tree`, or a copy of what is `needed` of it beside the data where the account can't enter the tree."""
    if all(enterable(tree / needed_path, data_dir.who) for needed_path in needed):
        return tree
    copy = data_dir.folder.parent / name
    if not copy.exists():
        fresh = copy.with_name(f"{name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        for needed_path in needed:
            _copy(tree / needed_path, fresh / needed_path)
        for copied in (fresh, *fresh.rglob("*")):
            copied.chmod(0o755)
        fresh.rename(copy)
    return copy


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
