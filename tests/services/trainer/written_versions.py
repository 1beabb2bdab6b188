"""Versions of a small model in a store: what a trainer writes, and what each of them must come out as."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from services.trainer.stage_weights import Stage
from services.trainer.version_writer import RunFiles, VersionWriter
from shared.messages import WeightFiles
from shared.weight_store import WeightStore

PIECE = 1000
"""So that tensors have several pieces, and a last one that is shorter."""


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Of version 0; two buckets of 8 kB, three types, one tensor of a single number."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(64, 30, generator=generator),
        "model.layers.0.mlp.up_proj.weight": torch.randn(40, 33, generator=generator).bfloat16(),
        "model.layers.0.mlp.experts": torch.randn(3, 5, 7, generator=generator).half(),
        "model.norm.weight": torch.randn(16, generator=generator).bfloat16(),
        "model.scale": torch.ones(()),
    }


def train(tensors: dict[str, torch.Tensor], seed: int) -> None:
    """Change a few numbers of some tensors, in place; the norm and the scale stay."""
    generator = torch.Generator().manual_seed(seed)
    for name in list(tensors)[:3]:
        flat = tensors[name].view(-1)
        at = torch.randint(len(flat), (9,), generator=generator)
        flat[at] += 0.25


def model_folder(folder: Path) -> Path:
    """What stands beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "dtype": "float32"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_text("not to be copied")
    return folder


@dataclass
class Written:
    """One run's versions under one trainer."""

    url: str
    model: Path
    full_every: int | None = 100
    epoch: int = 1
    run: str = "r1"
    seed: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    states: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """What each version must come out as."""

    def __post_init__(self) -> None:
        self.tensors = self.tensors or weights(self.seed)
        about = RunFiles(self.run, f"{self.run}-owner", self.epoch, model_folder(self.model), "bfloat16")
        self.writer = VersionWriter(WeightStore(self.url), about, self.full_every, PIECE)
        self._stage = Stage(8192)

    def write(self, version: int, in_full: bool = False) -> WeightFiles:
        """Train one step, and write what comes of it."""
        train(self.tensors, 1000 * self.seed + version)
        return self.write_again(version, in_full)

    def write_again(self, version: int, in_full: bool = False) -> WeightFiles:
        self.states[version] = {name: tensor.clone() for name, tensor in self.tensors.items()}
        staged = self._stage.stage(version, version, self.tensors.items())
        self._stage.publish(staged)
        content = b"".join(flat.numpy().tobytes() for flat in staged.buckets.flat)
        return self.writer.write(staged, hashlib.sha256(content).hexdigest(), in_full)
