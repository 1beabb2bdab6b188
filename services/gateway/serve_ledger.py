"""/v1/runs/{run}/ledger and /lineage: what became of all groups and tokens, and of one."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from services.gateway.ledger.describe_ledger import describe_ledger
from services.gateway.ledger.trace_group import trace_group
from services.gateway.parts import AllParts
from services.gateway.serve_runs import Found
from shared.ledger_answers import LedgerAnswer, Lineage
from shared.rest_answers import ErrorAnswer

routes = APIRouter(prefix="/v1/runs", tags=["ledger"])
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}}


@routes.get("/{run}/ledger", responses=_MISSING)
async def show_ledger(parts: AllParts, record: Found, verify: bool = False) -> LedgerAnswer:
    """Where every group and token of the run is. With `verify` it is proven from Redis and the newest checkpoint.

    Right while the run is live: counts are of one moment, and what is nowhere is looked for again, for 5 s, before it
    is called lost. A proof reads the attempts of undecided groups, at most 256 MiB of them.
    """
    return await describe_ledger(parts.redis, record, parts.runs_folder, verify)


@routes.get("/{run}/lineage/{group_id}", responses=_MISSING)
async def show_lineage(parts: AllParts, record: Found, group_id: Annotated[int, Path(ge=0)]) -> Lineage:
    """One group, from its prompt to the weights that it trained; `note` says what is not kept any more."""
    return await trace_group(parts.redis, record, parts.runs_folder, group_id)
