"""/v1/datasets: upload, list, show, preview, delete."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from services.gateway.check_row import Row, RowKeys
from services.gateway.dataset_store import Format
from services.gateway.parts import AllParts, Parts
from services.gateway.refusals import Refusal
from shared.rest_answers import Dataset, DatasetList, DatasetRow, ErrorAnswer, RowList
from shared.rest_examples import ROWS_JSONL
from shared.runs import ENDED, Runs

PAIR = ("chosen", "rejected")
routes = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself, of any size: rows as JSON lines, or Parquet.",
        "content": {
            "application/x-ndjson": {"schema": {"type": "string"}, "example": ROWS_JSONL},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
KeyName = Annotated[str, Query(min_length=1)]


def _row_keys(
    prompt_key: KeyName = "prompt",
    label_key: KeyName = "label",
    metadata_key: KeyName = "metadata",
    chosen_key: KeyName = "chosen",
    rejected_key: KeyName = "rejected",
) -> RowKeys:
    return RowKeys(prompt_key, label_key, metadata_key, chosen_key, rejected_key)


@routes.post(
    "/{name}", status_code=201, openapi_extra=_BODY, responses={s: {"model": ErrorAnswer} for s in (409, 415, 422, 507)}
)
async def upload_dataset(
    request: Request,
    parts: AllParts,
    name: str,
    keys: Annotated[RowKeys, Depends(_row_keys)],
    format: Format = "jsonl",
    replace: bool = False,
) -> Dataset:
    """Store a dataset: every row is checked, and one wrong row stores nothing.

    A row is `{"prompt": text or chat messages, "label": any JSON, "metadata": object}`; label and metadata may be
    absent, and the names of the keys can be given. A preference row has `chosen` and `rejected` beside the prompt:
    both text, or both the messages that come after it. `details` of a 422 lists the first wrong lines. With `replace`
    a dataset of that name is there until this one is complete, and this one from then on.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise Refusal(415, "send the file itself as the body, not a form: curl -X POST -T rows.jsonl ...")
    if not replace:
        return await parts.datasets.add(name, format, keys, request.stream())
    async with _unused(parts, name):
        pass  # better refused before the upload than after it
    return await parts.datasets.add(name, format, keys, request.stream(), True, lambda: _unused(parts, name))


@routes.get("")
async def list_datasets(parts: AllParts) -> DatasetList:
    """All datasets, by name."""
    return DatasetList(datasets=await asyncio.to_thread(parts.datasets.all))


@routes.get("/{name}", responses={404: {"model": ErrorAnswer}})
async def show_dataset(parts: AllParts, name: str) -> Dataset:
    """One dataset."""
    return await asyncio.to_thread(parts.datasets.get, name)


@routes.get("/{name}/rows", response_model_exclude_unset=True, responses={404: {"model": ErrorAnswer}})
async def preview_rows(
    parts: AllParts,
    name: str,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> RowList:
    """Rows as they are stored, from any place."""
    rows = await asyncio.to_thread(parts.datasets.preview, name, offset, limit)
    return RowList(rows=[_shown(number, row) for number, row in rows])


def _shown(number: int, row: Row) -> DatasetRow:
    """Without the answers of a pair that the row has not."""
    fields = asdict(row)
    return DatasetRow(row=number, **{k: v for k, v in fields.items() if k not in PAIR or v is not None})


@routes.delete("/{name}", status_code=204, responses={s: {"model": ErrorAnswer} for s in (404, 409)})
async def delete_dataset(parts: AllParts, name: str) -> None:
    """Delete a dataset that no run needs any more."""
    async with _unused(parts, name):
        await asyncio.to_thread(parts.datasets.delete, name)


@contextlib.asynccontextmanager
async def _unused(parts: Parts, name: str) -> AsyncGenerator[None]:
    """Keep runs from taking the dataset meanwhile; Refusal 409 if one that has not ended reads it."""
    async with parts.claims:
        users = [
            record.run
            for record in await Runs(parts.redis).list()
            if record.state not in ENDED and name in record.settings.datasets
        ]
        if users:
            raise Refusal(409, f"dataset {name} is in use by run {', '.join(users)}; stop the run first")
        yield
