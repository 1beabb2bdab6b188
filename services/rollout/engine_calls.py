"""The calls of an SGLang server that the sidecar makes; every one has a deadline and one of two ways to fail."""

import contextlib
from typing import Any, cast

import httpx

from services.rollout.show_adapters import ADAPTER
from shared.errors import SluiceError
from shared.messages import TensorSpec

SHORT_S = 10.0
"""Seconds for a call that only changes a state of the server."""
HEALTH_S = 2.0
MEMORY_TAGS = ("kv_cache", "weights", "cuda_graph")
"""All that SGLang gives away and takes again by name."""
IDLE_S = 2.0
"""Seconds after which an idle connection is not used again; the server closes it after 5."""


class EngineError(SluiceError):
    """The engine did not do what it was asked."""


class EngineRefused(EngineError):
    """The engine answered with an error: it lives, and the call had no effect."""

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(f"{call} answered {status}: {text[:300]}")
        self.status = status


class EngineApart(EngineRefused):
    """The engine cannot take part in a version at all, and was not asked to."""

    def __init__(self, reason: str) -> None:
        EngineError.__init__(self, reason)
        self.status = 0


class EngineSilent(EngineError):
    """The engine did not answer in time, or broke the connection: it hangs or is gone."""


class EngineCalls:
    """One server, by its address."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None, health: str = "/health") -> None:
        """`health` answers at once while the server is up, paused or not. `/health` does where we launched it."""
        limits = httpx.Limits(keepalive_expiry=IDLE_S)
        self._http = httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, transport=transport)
        self._health = health
        self.group = ""
        """The process group that the server is in."""
        self.version: str | None = None
        """What its weights were named last; None before, and while that changes."""

    async def healthy(self) -> bool:
        """True if the server answers that it is up; paused counts as up."""
        try:
            return (await self._http.get(self._health, timeout=HEALTH_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def ask(self, path: str, deadline_s: float = SHORT_S, method: str = "GET") -> httpx.Response:
        """Look, and change nothing; httpx.TransportError if there is no answer."""
        return await self._http.request(method, path, timeout=deadline_s)

    async def freeze_garbage(self) -> None:
        """Exempt everything that is loaded by now from garbage collection."""
        await self._post("/freeze_gc", None, SHORT_S)

    async def pause(self, mode: str, deadline_s: float) -> None:
        """Stop generating: requests in flight are retracted, aborted, or held as they are (in_place)."""
        await self._post("/pause_generation", {"mode": mode}, deadline_s)

    async def wait_until_idle(self, deadline_s: float) -> bool:
        """Let the requests in flight end while new ones wait in the server; False if some are left at the deadline.

        A bucket outside an update is refused, but not before the server is idle; what arrives until then queues
        behind it.
        """
        try:
            await self.receive_bucket([], "", None, deadline_s)
        except EngineRefused:
            return True
        except EngineSilent:
            return False
        return True

    async def resume(self, keeps_buffers: bool) -> None:
        """Generate again. With `keeps_buffers` what the last update took of device memory is left for the next one."""
        await self._post("/continue_generation", {"torch_empty_cache": not keeps_buffers}, SHORT_S)

    async def join_group(
        self, name: str, meeting: tuple[str, int], place: tuple[int, int], backend: str, deadline_s: float
    ) -> None:
        """Join a process group; answers when all its members have.

        Args:
            meeting: host and port of the trainer's store.
            place: the engine's first rank, and how many ranks the group has.
        """
        body = {
            "master_address": meeting[0],
            "master_port": meeting[1],
            "rank_offset": place[0],
            "world_size": place[1],
            "group_name": name,
            "backend": backend,
        }
        await self._post("/init_weights_update_group", body, deadline_s)
        self.group = name

    async def leave_group(self) -> None:
        """Leave the process group that was joined last, whatever state it is in."""
        name, self.group = self.group, ""
        if name:
            with contextlib.suppress(EngineRefused):
                await self._post("/destroy_weights_update_group", {"group_name": name}, SHORT_S)

    async def begin_update(self) -> None:
        """Open an update; servers before 0.5.20 have no such call and need none."""
        await self._post("/begin_weight_update", {}, SHORT_S, missing_ok=True)

    async def end_update(self) -> None:
        await self._post("/end_weight_update", {}, SHORT_S, missing_ok=True)

    async def receive_bucket(
        self, bucket: list[TensorSpec], group: str, version: int | None, deadline_s: float, is_flat: bool = True
    ) -> None:
        """Take part in a broadcast and load what it brings.

        Args:
            version: names the weights from now on.
            is_flat: one broadcast brings the whole bucket; else there is one for each tensor.
        """
        body: dict[str, Any] = {
            "names": [spec.name for spec in bucket],
            "dtypes": [spec.dtype for spec in bucket],
            "shapes": [spec.shape for spec in bucket],
            "group_name": group,
            "load_format": "flattened_bucket" if is_flat else None,
            "flush_cache": False,
        }
        if version is not None:
            self.version, body["weight_version"] = None, str(version)
        await self._post("/update_weights_from_distributed", body, deadline_s)
        if version is not None:
            self.version = str(version)

    async def load_folder(self, folder: str, version: int, deadline_s: float) -> None:
        """Load a Hugging Face folder and name it; the caches stay. Refused, the engine may hold parts of both."""
        body = {
            "model_path": folder,
            "load_format": "safetensors",
            "flush_cache": False,
            "weight_version": str(version),
        }
        self.version = None
        await self._post("/update_weights_from_disk", body, deadline_s)
        self.version = str(version)

    async def load_pickled(self, buckets: list[str], version: int | None, deadline_s: float) -> None:
        """Load one bucket from the memory that its pickles name, one for each rank; `version` names the weights."""
        body: dict[str, Any] = {
            "serialized_named_tensors": buckets,
            "load_format": "flattened_bucket",
            "flush_cache": False,
        }
        if version is not None:
            self.version, body["weight_version"] = None, str(version)
        await self._post("/update_weights_from_tensor", body, deadline_s)
        if version is not None:
            self.version = str(version)

    async def release_memory(self, deadline_s: float) -> None:
        """Give all device memory away: weights, caches, graphs. It must be paused, and its cache flushed."""
        self.version = None
        await self._post("/release_memory_occupation", {"tags": list(MEMORY_TAGS)}, deadline_s)

    async def resume_memory(self, deadline_s: float) -> None:
        """Take the memory again, after it was given away; what the weights are is left open."""
        await self._post("/resume_memory_occupation", {"tags": list(MEMORY_TAGS)}, deadline_s)

    async def load_adapter(self, name: str, folder: str, deadline_s: float) -> None:
        """Put an adapter beside the model and those that are there; no request uses it yet."""
        await self._post("/load_lora_adapter", {"lora_name": name, "lora_path": folder}, deadline_s)

    async def serve_adapter(self, name: str) -> None:
        """Answer every request that comes from now on with this adapter; those in flight end with theirs."""
        self.version = None
        await self._post("/update_weight_version", {"new_version": name, "abort_all_requests": False}, SHORT_S)
        self.version = name

    async def flush_cache(self) -> None:
        """Forget every cached prefix; refused while requests run."""
        await self._post("/flush_cache", None, SHORT_S)

    async def abort_all(self) -> None:
        """End all requests; each answers with what it has."""
        await self._post("/abort_request", {"abort_all": True}, SHORT_S)

    async def checksums(self, deadline_s: float, adapter: str = "") -> list[dict[str, str]]:
        """The hash of every parameter by its name, for each rank of the engine; `adapter`: of its tensors instead."""
        asked = {"action": f"{ADAPTER}{adapter}" if adapter else "checksum"}
        answer = await self._post("/weights_checker", asked, deadline_s)
        ranks = cast(list[dict[str, Any]], answer.json()["ranks"])
        return [cast(dict[str, str], rank["checksums"]) for rank in ranks]

    async def close(self) -> None:
        await self._http.aclose()

    async def _post(self, path: str, body: Any, deadline_s: float, missing_ok: bool = False) -> httpx.Response:
        try:
            answer = await self._http.post(path, json=body, timeout=max(deadline_s, 0.1))
        except httpx.TimeoutException as error:
            raise EngineSilent(f"{path} did not answer within {deadline_s:.1f} s") from error
        except httpx.HTTPError as error:
            raise EngineSilent(f"{path} failed: {type(error).__name__} {error}".rstrip()) from error
        if answer.status_code >= 400 and not (missing_ok and answer.status_code == 404):
            raise EngineRefused(path, answer.status_code, answer.text)
        return answer
