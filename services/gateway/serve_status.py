"""/healthz for those who watch the process, /v1/status for those who watch the deployment."""

import asyncio

from fastapi import APIRouter
from redis.asyncio import Redis

from services.gateway.ask_router import ask_router
from services.gateway.parts import AllParts
from services.gateway.weights.describe_memory import describe_memory
from services.gateway.weights.describe_update import describe_update
from shared.rest_answers import Health
from shared.runs import ENDED, Runs, present
from shared.status_answers import RedisStatus, Status

health = APIRouter(tags=["status"])
routes = APIRouter(prefix="/v1", tags=["status"])


@health.get("/healthz")
async def healthz() -> Health:
    """200 while the gateway turns; needs no key."""
    return Health(status="ok")


@routes.get("/status")
async def status(parts: AllParts) -> Status:
    """What is running: the active run, the services that are ready for it, its newest weight version and where each
    engine is with it, the router and Redis."""
    redis_status, router_status, active = await asyncio.gather(
        _ask_redis(parts.redis), ask_router(parts.router), Runs(parts.redis).active()
    )
    run = active.run if active is not None and active.state not in ENDED else None
    services = await present(parts.redis, run) if run else []
    update = await describe_update(parts.redis, run) if run else None
    memory = await describe_memory(parts.redis, run) if run else None
    return Status(
        active_run=run,
        services=services,
        router=router_status,
        redis=redis_status,
        update=update,
        memory=memory,
    )


async def _ask_redis(redis: Redis) -> RedisStatus:
    server, memory = await redis.info("server"), await redis.info("memory")
    return RedisStatus(version=str(server["redis_version"]), used_memory=int(memory["used_memory"]))
