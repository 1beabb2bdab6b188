"""Calls of an engine's sidecar -> weights that came over a real rendezvous, and their hashes, without SGLang."""

import base64
import os
import time
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing import reductions

from services.trainer.rendezvous import NCCL_ENVIRONMENT
from services.trainer.weight_buckets import WeightBuckets
from services.trainer.weight_hashes import engine_checksums
from shared.messages import TensorSpec

c10d: Any = distributed
shared: Any = reductions
JOIN_S, BROADCAST_S = 20.0, 60.0


class ReceivedWeights:
    """The engine's end of the process group, and the parameters into which it copies what comes, as an engine does."""

    def __init__(self, device: torch.device | None = None) -> None:
        """`device`: a CPU, which takes part over gloo, or a GPU, over NCCL."""
        self._device = device or torch.device("cpu")
        self._groups: dict[str, Any] = {}
        self._parameters: dict[str, torch.Tensor] = {}
        self._buckets: dict[tuple[str, ...], WeightBuckets] = {}
        """Memory to receive in, which torch would keep on a GPU and give back on a CPU, by the names of a bucket."""
        self.seconds = {"receive": 0.0, "copy": 0.0}
        """Of all buckets so far."""
        if self._device.type == "cuda":
            _know_gpus_by_uuid()

    def join(self, body: dict[str, Any]) -> None:
        """Join a group under the names by which `torch.distributed` finds its peers; blocks until all have joined."""
        name, rank, size = str(body["group_name"]), int(body["rank_offset"]), int(body["world_size"])
        timeout = timedelta(seconds=JOIN_S)
        store = c10d.TCPStore(body["master_address"], int(body["master_port"]), size, False, timeout)
        for prefix in (name, f"{name}/", f"{self._device.type}/"):
            store = c10d.PrefixStore(prefix, store)
        self._groups[name] = process_group(store, rank, size, self._device)

    def leave(self, body: dict[str, Any]) -> None:
        """Close the connections of a group; KeyError if it was never joined."""
        del self._groups[str(body["group_name"])]

    def receive(self, body: dict[str, Any]) -> None:
        """Take part in the broadcast of one bucket, and copy it; RuntimeError when the group breaks."""
        bucket = self._bucket(body)
        started = time.monotonic()
        group = self._groups[str(body["group_name"])]
        parts = bucket.flat if body["load_format"] else list(bucket.tensors.values())
        for work in [group.broadcast(part, 0) for part in parts]:
            work.wait()
        self._wait()
        received = time.monotonic()
        for name, tensor in bucket.tensors.items():
            self._copy(name, tensor)
        self._wait()
        self.seconds["receive"] += received - started
        self.seconds["copy"] += time.monotonic() - received

    def _bucket(self, body: dict[str, Any]) -> WeightBuckets:
        names = tuple(body["names"])
        if names not in self._buckets:
            named = zip(names, body["dtypes"], body["shapes"], strict=True)
            self._buckets[names] = WeightBuckets([[TensorSpec(*spec) for spec in named]], self._device)
        return self._buckets[names]

    def take(self, body: dict[str, Any]) -> None:
        """Copy one bucket out of the memory that the pickle names."""
        started = time.monotonic()
        found = ForkingPickler.loads(base64.b64decode(body["serialized_named_tensors"][0]))
        opened = time.monotonic()
        for meta in found["metadata"]:
            part = found["flattened_tensor"][meta.start_idx : meta.end_idx]
            self._copy(meta.name, part.view(meta.dtype).view(meta.shape))
        self._wait()
        self.seconds["receive"] += opened - started
        self.seconds["copy"] += time.monotonic() - opened

    def checksums(self) -> dict[str, str]:
        """What SGLang's weight checker would answer if it had loaded these tensors."""
        return engine_checksums(self._parameters, self._device.type)

    def _copy(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self._parameters:
            self._parameters[name] = torch.empty_like(tensor)
        self._parameters[name].copy_(tensor)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _know_gpus_by_uuid() -> None:
    """As SGLang does: what is lent names the GPU so, and torch expects its number in this process."""
    rebuild = shared.rebuild_cuda_tensor
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]

    def rebuild_by_uuid(*arguments: Any) -> torch.Tensor:
        return rebuild(*arguments[:6], uuids.index(arguments[6]), *arguments[7:])

    shared.rebuild_cuda_tensor = rebuild_by_uuid


def process_group(store: Any, rank: int, size: int, device: torch.device) -> Any:
    """One of gloo for a CPU, of NCCL for a GPU; blocks until all have joined."""
    timeout = timedelta(seconds=BROADCAST_S)
    if device.type == "cuda":
        os.environ.update(NCCL_ENVIRONMENT)
        torch.cuda.set_device(device)
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return c10d.ProcessGroupNCCL(store, rank, size, options)
    options = c10d.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return c10d.ProcessGroupGloo(store, rank, size, options)
