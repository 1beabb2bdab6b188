"""Broadcasts of the trainer -> the tensors that an engine would load, and the hashes that prove them."""

from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from services.trainer.weight_buckets import WeightBuckets
from services.trainer.weight_hashes import engine_checksums
from shared.messages import TensorSpec

c10d: Any = distributed
JOIN_S, BROADCAST_S = 20.0, 60.0


class TokenWeights:
    """The engine's end of the process group, over gloo, and what came through it."""

    def __init__(self) -> None:
        self._groups: dict[str, Any] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def join(self, body: dict[str, Any]) -> None:
        """Join a group under the names by which `torch.distributed` finds its peers; blocks until all have joined."""
        name, rank, size = str(body["group_name"]), int(body["rank_offset"]), int(body["world_size"])
        timeout = timedelta(seconds=JOIN_S)
        store = c10d.TCPStore(body["master_address"], int(body["master_port"]), size, False, timeout)
        for prefix in (name, f"{name}/", "cpu/"):
            store = c10d.PrefixStore(prefix, store)
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=BROADCAST_S)
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        self._groups[name] = c10d.ProcessGroupGloo(store, rank, size, options)

    def leave(self, body: dict[str, Any]) -> None:
        """Close the connections of a group; KeyError if it was never joined."""
        del self._groups[str(body["group_name"])]

    def receive(self, body: dict[str, Any]) -> None:
        """Take part in the broadcast of one bucket; RuntimeError when the group breaks."""
        named = zip(body["names"], body["dtypes"], body["shapes"], strict=True)
        bucket = WeightBuckets([[TensorSpec(name, dtype, shape) for name, dtype, shape in named]], torch.device("cpu"))
        self._groups[str(body["group_name"])].broadcast(bucket.flat[0], 0).wait()
        self._tensors.update(bucket.tensors)

    def checksums(self) -> dict[str, str]:
        """What SGLang's weight checker would answer if it had loaded these tensors."""
        return engine_checksums(self._tensors, "cpu")
