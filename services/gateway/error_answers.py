"""Everything that can go wrong in a request -> `{"error": {"message", "details"}}` with the right status."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.gateway.refusals import Refusal
from shared.errors import RunConflict, SettingsError, SluiceError
from shared.logs import Log
from shared.redis_connection import UNREACHABLE


def answer_errors(app: FastAPI, log: Log) -> None:
    """Register the handlers."""

    async def sluice_error(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, Refusal):
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            return error_answer(error.status, str(error), error.details, headers)
        status = 409 if isinstance(error, RunConflict) else 422 if isinstance(error, SettingsError) else 400
        lines = str(error).splitlines()
        return error_answer(status, str(error), lines if len(lines) > 1 else [])

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        sentences = [_sentence(one) for one in error.errors()]
        return error_answer(422, "; ".join(sentences), sentences)

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        messages = {404: f"there is nothing at {where}; see /docs", 405: f"{where} is not allowed; see /docs"}
        return error_answer(
            error.status_code, messages.get(error.status_code, str(error.detail)), [], dict(error.headers or {})
        )

    async def redis_error(request: Request, error: Exception) -> JSONResponse:
        log.warning("redis_error", path=request.url.path, error=str(error))
        if isinstance(error, UNREACHABLE):
            return error_answer(503, "Redis does not answer; try again when it is back")
        return error_answer(500, f"Redis refused a command: {error}")

    async def defect(request: Request, error: Exception) -> JSONResponse:
        return error_answer(500, f"the gateway failed with {type(error).__name__}; its log says where")

    app.add_exception_handler(SluiceError, sluice_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RedisError, redis_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, defect)


def error_answer(
    status: int, message: str, details: Sequence[Any] = (), headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "details": list(details)}}, status, headers)


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return error_answer(400, "the client left before its request was complete")


def _sentence(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"][1:]) or "the request"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{place} is {error.get('input')!r}; {message[:1].lower()}{message[1:]}"
