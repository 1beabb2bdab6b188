"""An SGLang server whose weights are what it was told to load from a folder; requests it has none."""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file

from services.trainer.fp8_blocks import from_blocks


@dataclass
class LoadingServer:
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    """All but those that ask whether it is up."""
    is_loading: asyncio.Event = field(default_factory=asyncio.Event)
    may_load: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_load.set()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path == "/health":
            return httpx.Response(200)
        self.calls.append(path)
        if path == "/update_weights_from_disk":
            self.is_loading.set()
            await self.may_load.wait()
            return self._load(body)
        if path == "/continue_generation":
            assert body == {"torch_empty_cache": True}, "no version in files needs the device memory of the last"
        return httpx.Response(200, json={"success": True, "ranks": [{"checksums": self._hashes()}]})

    def _hashes(self) -> dict[str, str]:
        """As SGLang's checker has them on a CPU."""
        scales = {name: f"{name}_scale_inv" for name in self.weights if f"{name}_scale_inv" in self.weights}
        meant = {name: from_blocks(self.weights[name], self.weights[of]) for name, of in scales.items()}
        held = {name: tensor for name, tensor in self.weights.items() if name not in scales.values()}
        raw = {name: tensor.reshape(-1).view(torch.uint8).numpy() for name, tensor in {**held, **meant}.items()}
        return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in raw.items()}

    def _load(self, body: dict[str, Any]) -> httpx.Response:
        assert body["flush_cache"] is False, "retracted requests wait, for which SGLang refuses to flush"
        folder = Path(body["model_path"])
        assert (folder / "config.json").exists()
        for file in sorted(folder.glob("*.safetensors")):
            self.weights |= load_file(file)
        self.folders.append(folder)
        self.versions.append(body["weight_version"])
        return httpx.Response(200, json={"success": True})
