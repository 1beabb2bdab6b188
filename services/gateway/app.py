"""The parts of the gateway -> the application with all its endpoints."""

from fastapi import Depends, FastAPI

from services.gateway import (
    branch_run,
    forward_generation,
    serve_datasets,
    serve_dead,
    serve_ledger,
    serve_runs,
    serve_status,
)
from services.gateway.error_answers import answer_errors
from services.gateway.parts import Parts, authenticate
from services.gateway.weights import serve_weights
from shared.logs import Log
from shared.rest_answers import ErrorAnswer

DESCRIPTION = """Datasets in, runs started and followed, the model asked.

Every request but `/healthz` needs the header `Authorization: Bearer KEY`; the key is in the file `api_key` of the
deployment's home. Every error is `{"error": {"message": ..., "details": [...]}}`."""


def build_app(parts: Parts, log: Log) -> FastAPI:
    app = FastAPI(
        title="Sluice", description=DESCRIPTION, version="1", redoc_url=None, generate_unique_id_function=_operation
    )
    app.state.parts = parts
    answer_errors(app, log)
    app.include_router(serve_status.health)
    for routes in (
        serve_status.routes,
        serve_datasets.routes,
        serve_runs.routes,
        serve_ledger.routes,
        serve_dead.routes,
        serve_weights.routes,
        branch_run.routes,
        forward_generation.routes,
    ):
        app.include_router(
            routes, dependencies=[Depends(authenticate)], responses={s: {"model": ErrorAnswer} for s in (401, 422, 503)}
        )
    return app


def _operation(route: "object") -> str:
    return str(getattr(route, "name", ""))
