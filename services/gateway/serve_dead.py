"""/v1/runs/{run}/dead: entries that were given up, to look at, send again or throw away."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, model_validator

from services.gateway.dead_letters import DeadLetters
from services.gateway.parts import AllParts
from services.gateway.serve_runs import Found
from shared.ledger_answers import DeadEntry, DeadLetterList, Discarded, Redriven
from shared.rest_answers import ErrorAnswer

routes = APIRouter(prefix="/v1/runs", tags=["ledger"])
_ERRORS: dict[int | str, dict[str, Any]] = {s: {"model": ErrorAnswer} for s in (404, 409)}


class RedriveRequest(BaseModel):
    """Which groups to send again: some, or all."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"groups": [31]}, {"all": True}]})
    groups: list[int] = []
    all: bool = False

    @model_validator(mode="after")
    def _says_which(self) -> "RedriveRequest":
        if self.all == bool(self.groups):
            raise ValueError('send {"groups": [...]} or {"all": true}')
        return self


class DiscardRequest(BaseModel):
    """Which letters to delete: those of some groups, some by their ids, or all."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"groups": [31]}, {"all": True}]})
    groups: list[int] = []
    ids: list[str] = []
    all: bool = False

    @model_validator(mode="after")
    def _says_which(self) -> "DiscardRequest":
        if self.all == bool(self.groups or self.ids):
            raise ValueError('send {"groups": [...]}, {"ids": [...]} or {"all": true}')
        return self


@routes.get("/{run}/dead", responses=_ERRORS)
async def list_dead(
    parts: AllParts, record: Found, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> DeadLetterList:
    """Dead letters, newest first, and how many there are."""
    return await DeadLetters(parts.redis, record).newest(limit)


@routes.get("/{run}/dead/{letter}", responses=_ERRORS)
async def show_dead(parts: AllParts, record: Found, letter: str) -> DeadEntry:
    """One dead letter with its entry, decoded if it decodes."""
    return await DeadLetters(parts.redis, record).show(letter)


@routes.post("/{run}/dead/redrive", responses=_ERRORS)
async def redrive_dead(parts: AllParts, record: Found, wanted: RedriveRequest) -> Redriven:
    """Send groups again: their drop is taken back, their attempts that were scored still count."""
    return await DeadLetters(parts.redis, record).redrive(None if wanted.all else wanted.groups)


@routes.delete("/{run}/dead", responses=_ERRORS)
async def discard_dead(parts: AllParts, record: Found, wanted: Annotated[DiscardRequest, Body()]) -> Discarded:
    """Delete dead letters, and what is kept of their groups; the drops stay counted."""
    return await DeadLetters(parts.redis, record).discard(wanted.groups, wanted.ids, wanted.all)
