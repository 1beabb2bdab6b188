"""host and port -> a bound socket, or a sentence that says why not."""

import errno
import socket

from shared.errors import SettingsError, SluiceError
from shared.loopback import is_loopback


def listen(host: str, port: int, has_own_key: bool) -> socket.socket:
    """Bind the gateway's socket.

    Raises:
        SettingsError: the host is reachable from outside and no key was chosen for it.
        SluiceError: the port is in use or the address is not of this machine.
    """
    if not has_own_key and not is_loopback(host):
        raise SettingsError(
            f"gateway.host is {host!r}, which other machines reach, and gateway.api_key is not set; "
            'set it (SLUICE_GATEWAY__API_KEY) to a secret of your own, or write host = "127.0.0.1"'
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SluiceError(
                f"port {port} on {host} is in use; stop what listens there (another gateway?) or set gateway.port"
            ) from error
        raise SluiceError(f"cannot listen on {host}:{port} ({error.strerror}); correct gateway.host") from error
