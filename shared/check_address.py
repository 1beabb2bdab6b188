"""The text of a setting -> the same text, or the sentence that says how an address is written."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

REDIS_EXAMPLE = "redis://:password@host:port/0, or rediss:// for TLS"


def names_a_host(text: str, schemes: tuple[str, ...]) -> bool:
    """True for SCHEME://HOST, with or without a port, of one of the schemes."""
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and not set(text) & set(" \t\n")
    except ValueError:  # brackets without an address, or a port out of range
        return False


def _check_http(text: str) -> str:
    if text and not names_a_host(text, ("http", "https")):
        raise ValueError("write http://HOST:PORT, or leave it empty")
    return text


def _check_redis(text: str) -> str:
    if text and not text.startswith(("redis://", "rediss://")):
        raise ValueError(f"write {REDIS_EXAMPLE}, or leave it empty")
    return text


HttpAddress = Annotated[str, AfterValidator(_check_http)]
RedisAddress = Annotated[str, AfterValidator(_check_redis)]
