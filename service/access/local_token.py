"""The local token: `callboard up` lets in whoever can read it in the data folder, whether there are keys or not."""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from service.core.errors import StartError
from service.core.settings import LOCAL_TOKEN

FILE: Final = "token"
OTHERS: Final = 0o077


def local_token(folder: Path) -> str:
    """Reads the token of a data folder; where there is none, writes one to a file that nobody else may read.

    Replaces one that others could read. Raises StartError where the folder can't be used.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (token := noted_token(folder)) and not path.stat().st_mode & OTHERS:
            return token
        path.unlink(missing_ok=True)
        token = f"cl_{secrets.token_urlsafe(32)}"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{token}\n")
    except OSError as error:
        raise StartError(f"{path} can't be made ({error}). Set CALLBOARD_DATA_DIR to a folder of your own.") from error
    return token


def noted_token(folder: Path) -> str:
    """The token in the file; empty where there is none that we may read."""
    with suppress(OSError, UnicodeDecodeError):
        token = (folder / FILE).read_text(encoding="ascii").strip()
        if re.fullmatch(LOCAL_TOKEN, token):
            return token
    return ""
