"""What the endpoints work with -> parameters that FastAPI fills in."""

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

import httpx
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from services.gateway.refusals import Refusal


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the application is made of."""

    redis: Redis
    datasets: DatasetStore
    router: httpx.AsyncClient
    """Its base URL is the router's."""
    api_key: str
    runs_folder: Path = Path(".sluice/runs")
    """Checkpoints, exports and archives of the runs, where this node reaches them."""
    claims: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a run takes datasets or a dataset is deleted: neither may slip in between the other's checks."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway stops: event streams end."""


def _parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


AllParts = Annotated[Parts, Depends(_parts)]

_bearer = HTTPBearer(auto_error=False, description="The gateway's API key")


def authenticate(parts: AllParts, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    """Refusal 401 unless the request carries the key."""
    if given is None:
        raise Refusal(401, "the API key is missing; send the header `Authorization: Bearer KEY`")
    if not secrets.compare_digest(given.credentials.encode(), parts.api_key.encode()):
        raise Refusal(401, "the API key is wrong; the right one is in the file api_key of the deployment's home")
