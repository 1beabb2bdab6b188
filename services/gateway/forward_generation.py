"""/generate and /v1/chat/completions -> the router, both bodies streamed; the gateway's key stays here."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from services.gateway.parts import AllParts
from services.gateway.refusals import Refusal
from shared.rest_answers import ErrorAnswer

routes = APIRouter(tags=["generation"], responses={s: {"model": ErrorAnswer} for s in (502, 503, 504)})

DROPPED = {
    *("host", "authorization", "cookie", "origin"),
    *("connection", "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
}
KEPT_ANSWER_HEADERS = ("content-type", "content-length", "content-encoding", "cache-control", "x-request-id")


def _body(example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


_GENERATE = _body({"text": "3+4=", "sampling_params": {"temperature": 0.0, "max_new_tokens": 16}})
_CHAT = _body({"model": "default", "messages": [{"role": "user", "content": "What is 3+4?"}], "max_tokens": 16})


@routes.post("/generate", openapi_extra=_GENERATE, response_model=None)
async def generate(request: Request, parts: AllParts) -> Response:
    """SGLang's own generation endpoint, answered by the newest weights."""
    return await _forward(request, parts.router, "/generate")


@routes.post("/v1/chat/completions", openapi_extra=_CHAT, response_model=None)
async def chat(request: Request, parts: AllParts) -> Response:
    """OpenAI-compatible chat, answered by the newest weights; `"stream": true` streams."""
    return await _forward(request, parts.router, "/v1/chat/completions")


async def _forward(request: Request, router: httpx.AsyncClient, path: str) -> Response:
    headers = {name: value for name, value in request.headers.items() if name not in DROPPED}
    outgoing = router.build_request(
        "POST", path, params=httpx.QueryParams(request.url.query), headers=headers, content=request.stream()
    )
    try:
        answer = await router.send(outgoing, stream=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Refusal(502, f"the router at {router.base_url} is not there ({error}); see /v1/status") from error
    except httpx.TimeoutException as error:
        raise Refusal(504, f"the router at {router.base_url} did not answer in time") from error
    except httpx.TransportError as error:
        raise Refusal(502, f"the router at {router.base_url} broke off ({error}); try again") from error
    if answer.status_code in (502, 503):
        raise await _no_engine(answer)
    kept = {name: answer.headers[name] for name in KEPT_ANSWER_HEADERS if name in answer.headers}
    return StreamingResponse(_pass_on(answer), answer.status_code, kept)


async def _no_engine(answer: httpx.Response) -> Refusal:
    try:
        text = (await answer.aread()).decode(errors="replace")
    except httpx.TransportError as error:
        text = str(error)
    finally:
        await answer.aclose()
    return Refusal(
        answer.status_code, "no engine answers behind the router; engines serve while a run is active", [text]
    )


async def _pass_on(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
