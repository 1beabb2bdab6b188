"""A client of sglang-router: how many engines stand behind it."""

from typing import Any, cast

import httpx

from shared.status_answers import RouterStatus

STATUS_DEADLINE_S = 2.0


def open_router(url: str) -> httpx.AsyncClient:
    """A pooled client. Generations may take long; connecting may not."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(600, connect=5, pool=60),
        limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100),
        trust_env=False,
    )


async def ask_router(router: httpx.AsyncClient) -> RouterStatus:
    """Whether the router answers, and how many engines are registered with it."""
    try:
        answer = await router.get("/workers", timeout=STATUS_DEADLINE_S)
        answer.raise_for_status()
        workers = cast(dict[str, Any], answer.json()).get("workers", [])
    except (httpx.HTTPError, ValueError):
        return RouterStatus(reachable=False, workers=0)
    return RouterStatus(reachable=True, workers=len(workers))
