"""The deployment's settings -> a gateway that serves until SIGTERM or SIGINT; exits 1 with a sentence if it cannot."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, Generator

import uvicorn

from services.gateway.api_key import find_api_key
from services.gateway.app import build_app
from services.gateway.ask_router import open_router
from services.gateway.dataset_store import DatasetStore
from services.gateway.feeder import Feeder
from services.gateway.listen import listen
from services.gateway.parts import Parts
from shared.deployment import Deployment, load_deployment
from shared.errors import SluiceError
from shared.logs import Log, configure
from shared.redis_connection import connect_checked
from shared.service import stop_on_signals
from shared.tasks import end

DRAIN_S = 3
"""Seconds that requests in flight have to end when the gateway stops."""


class Server(uvicorn.Server):
    """uvicorn, leaving the signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def main() -> None:
    try:
        deployment = load_deployment()
        log = configure("gateway", deployment.log.level, deployment.log.format == "json")
        asyncio.run(live(deployment, log))
    except SluiceError as error:
        sys.stderr.write(f"sluice gateway: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # only before the gateway serves; from then on SIGINT is a clean stop


async def live(deployment: Deployment, log: Log) -> None:
    """Serve until a signal.

    Raises:
        SluiceError: the port is in use, Redis does not answer, the home folder cannot be written, ...
    """
    gateway = deployment.gateway
    with listen(gateway.host, gateway.port, bool(gateway.api_key)) as port:
        async with _open_parts(deployment) as parts:
            await _serve(parts, port, log)
    log.info("service_stopped")


@contextlib.asynccontextmanager
async def _open_parts(deployment: Deployment) -> AsyncGenerator[Parts]:
    redis = await connect_checked(deployment.redis.url, deployment.redis.connect_deadline_s)
    async with redis, open_router(deployment.router_url) as router:
        home = deployment.paths.home.absolute()
        api_key = find_api_key(home, deployment.gateway.api_key)
        datasets = DatasetStore(home / "datasets")
        yield Parts(redis, datasets, router, api_key, deployment.runs_folder)


async def _serve(parts: Parts, port: socket.socket, log: Log) -> None:
    stopping = stop_on_signals()
    server = Server(
        uvicorn.Config(
            build_app(parts, log), lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_S
        )
    )
    host, number = port.getsockname()[:2]
    log.info("service_started", host=host, port=number)
    serving = asyncio.create_task(server.serve(sockets=[port]))
    feeding = asyncio.create_task(Feeder(parts.redis, parts.datasets, log).feed())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, feeding, stop}, return_when=asyncio.FIRST_COMPLETED)
    parts.closing.set()
    parts.datasets.close()
    server.should_exit = True
    await end(feeding, stop)
    await serving
    if not feeding.cancelled():
        feeding.result()


if __name__ == "__main__":
    main()
