"""A host -> whether only this machine reaches it."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Of an address, or of the name localhost; other names may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
