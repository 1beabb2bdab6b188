"""The deployment's settings and home folder -> the API key; made on the first start, shown on that start only."""

import os
import secrets
import sys
from pathlib import Path

from shared.errors import SluiceError

FILE = "api_key"


def find_api_key(home: Path, configured: str) -> str:
    """The configured key, else the one in `home`/api_key, made and printed if there is none.

    Raises:
        SluiceError: the file cannot be read or written, or is empty.
    """
    if configured:
        return configured
    file = home.absolute() / FILE
    try:
        return _read(file) if file.exists() else _make(file)
    except OSError as error:
        raise SluiceError(f"{file}: {error.strerror}; make it accessible, or set gateway.api_key") from error


def _read(file: Path) -> str:
    key = file.read_text("utf-8").strip()
    if not key:
        raise SluiceError(f"{file} is empty; delete it and start again for a new key, or set gateway.api_key")
    return key


def _make(file: Path) -> str:
    key = secrets.token_urlsafe(32)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{FILE}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(key + "\n")
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(aside, file)  # unlike a rename, it does not replace the key of a gateway that was faster
    except FileExistsError:
        return _read(file)
    finally:
        aside.unlink()
    sys.stdout.write(f"API key, shown this once and kept in {file}: {key}\n")
    sys.stdout.flush()
    return key
