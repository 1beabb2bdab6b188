"""A list of ports -> nothing, or one sentence that names the taken port, who holds it and what to set instead."""

import errno
import socket
from collections.abc import Iterable
from pathlib import Path

from deploy.services import PortUse
from shared.deployment import PREFIX
from shared.errors import SluiceError

HIGHEST = 65535
LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""


def check_ports(uses: Iterable[PortUse]) -> None:
    """Raise SluiceError for the first port that two services share, that does not exist or that something holds."""
    seen: dict[int, str] = {}
    for use in uses:
        if use.port > HIGHEST:
            raise SluiceError(
                f"{use.setting} of the last engines comes to {use.port}, and {HIGHEST} is the highest port; write a"
                " smaller one"
            )
        if use.port in seen:
            raise SluiceError(
                f"{seen[use.port]} and {use.setting} both come to port {use.port}; give one of them another port"
            )
        seen[use.port] = use.setting
        _check(use)


def _check(use: PortUse) -> None:
    error = bind_error(use.host, use.port)
    if error is None:
        return
    variable = PREFIX + use.setting.upper().replace(".", "__")
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(use.port)
        by = f" by process {holder}" if holder else ""
        raise SluiceError(
            f"port {use.port} is in use{by}; stop that, or choose another port:"
            f" `sluice up --set {use.setting}=...` or {variable}"
        )
    host = use.setting.rpartition(".")[0] + ".host"
    raise SluiceError(
        f"cannot listen on {use.host}:{use.port} ({error.strerror or error}); correct {host} or {use.setting}"
    )


def bind_error(host: str, port: int) -> OSError | None:
    """What speaks against listening there, as the server would do it; None if nothing does."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def holder_of(port: int) -> str:
    """`4711 (python -m http.server)` for the process that listens on the port; empty where /proc does not tell."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(Path("/proc/net") / table, port)}
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        if any(link in inodes for link in _sockets(process)):
            return f"{process.name} ({_command(process)})"
    return ""


def _listening(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [f"socket:[{row[9]}]" for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port]


def _sockets(process: Path) -> list[str]:
    try:
        return [str(link.readlink()) for link in (process / "fd").iterdir() if link.is_symlink()]
    except OSError:
        return []  # another user's process, or one that just ended


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "unknown"
    return words if len(words) <= 80 else f"{words[:77]}..."
