"""One batch -> one HTTP call with a deadline -> its answer, or why there is none."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

import httpx

from services.reward.remote.failures import Rejected, Unavailable
from services.reward.remote.protocol import read_answer, request_body
from services.reward.score import Score, ScoringFailed
from shared.errors import SettingsError

C = TypeVar("C", bound="ServiceClient")
OF_THE_SERVICE = frozenset({401, 403, 404, 405, 407, 408, 425, 429})
"""4xx answers that speak of the address, the credentials or the load, not of the batch; they may pass."""
EXCERPT = 200


class ServiceClient:
    """A service at one address, spoken to in JSON."""

    def __init__(self, http: httpx.AsyncClient, url: httpx.URL, deadline_s: float) -> None:
        self._http, self._url, self.deadline_s = http, url, deadline_s
        self.name = str(url.copy_with(userinfo=b"", query=None))
        """The address without what may be secret."""

    async def post(self, body: bytes, path: str = "") -> bytes:
        """The body of a good answer; Unavailable or Rejected if there is none.

        Args:
            path: below the address, such as `/generate`.
        """
        return (await self._send("POST", self._below(path), self.deadline_s, body)).content

    async def check_health(self, deadline_s: float) -> None:
        """Unavailable or Rejected unless GET {url}/health answers 2xx."""
        await self._send("GET", self._below("/health"), deadline_s, None)

    def _below(self, path: str) -> httpx.URL:
        return self._url.copy_with(path=self._url.path.rstrip("/") + path) if path else self._url

    async def _send(self, method: str, url: httpx.URL, deadline_s: float, body: bytes | None) -> httpx.Response:
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._http.request(method, url, content=body, headers=headers)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {deadline_s:g} s") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return answer
        status = f"it answered {answer.status_code} {answer.reason_phrase}: {answer.text[:EXCERPT]}"
        if answer.is_client_error and answer.status_code not in OF_THE_SERVICE:
            raise Rejected(status)
        raise Unavailable(status)


class RewardClient(ServiceClient):
    """The remote reward at one address."""

    async def score(self, items: list[str]) -> list[Score | ScoringFailed]:
        """Ask for the scores of encoded rollouts; Unavailable or Rejected if there is no good answer."""
        return read_answer(await self.post(request_body(items)), len(items))


@contextlib.asynccontextmanager
async def open_client(kind: type[C], url: str, deadline_s: float, setting: str) -> AsyncGenerator[C]:
    """A client whose connections live as long as the block; `setting` has the address."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"{setting} is {url!r} ({error}); write an http:// or https:// address") from error
    # one deadline covers the whole call, and a proxy of the environment has no place between two services
    async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
        yield kind(http, parsed, deadline_s)
