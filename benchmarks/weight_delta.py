"""Consecutive versions of a training run -> the bytes of a delta against a full one, and the CPU time of both.

`python -m benchmarks.weight_delta [--learning-rates 1e-6 1e-5 1e-4] [--hidden 128 --layers 2] [--json FILE]`

The trainer and GRPO are the product's, on the words of `benchmarks.learning`; so are the writer of versions and the
copy of a host. Store and host are folders of this machine's disk.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.learn import demonstrate, reinforce, words_run
from benchmarks.learning.words import Words, make_words
from services.rollout.host_copy import HostCopy
from services.rollout.version_chain import VersionChain
from services.trainer.learner import Learner
from services.trainer.stage_weights import Stage, Staged
from services.trainer.tiny_model import TinyShape, write_tiny_model
from services.trainer.version_writer import RunFiles, VersionWriter
from shared.messages import WeightFiles
from shared.run_settings import RunSettings
from shared.weight_store import WeightStore

MIB = 2**20
SHOWN_RIGHT = 0.5
"""Share of the demonstrations that are right, before RL."""
COLUMNS = (
    "weights",
    "learning rate",
    "full",
    "delta",
    "of full",
    "numbers changed",
    "write full",
    "write delta",
    "copy full",
    "apply delta",
)


@dataclass
class Measured:
    """What became of one version after the other; sizes in bytes, times in seconds of one core."""

    full: list[int] = field(default_factory=list[int])
    delta: list[int] = field(default_factory=list[int])
    changed: list[float] = field(default_factory=list[float])
    write_full: list[float] = field(default_factory=list[float])
    write_delta: list[float] = field(default_factory=list[float])
    copy_full: list[float] = field(default_factory=list[float])
    apply_delta: list[float] = field(default_factory=list[float])

    def median(self, name: str) -> float:
        return float(np.median(getattr(self, name)))


class Publication:
    """Writes every version in full and as a delta, and takes both on a host."""

    def __init__(self, home: Path, settings: RunSettings) -> None:
        about = RunFiles("words", "benchmark", 1, Path(settings.model.path), settings.model.dtype)
        self._stores = WeightStore(str(home / "full")), WeightStore(str(home / "delta"))
        self._full, self._delta = (
            VersionWriter(self._stores[0], about, None),
            VersionWriter(self._stores[1], about, 10**6),
        )
        self._home, self._copy = home, HostCopy(home / "host")
        self._stage, self._before = Stage(512 * MIB), dict[str, torch.Tensor]()
        self.measured = Measured()

    def publish(self, version: int, learner: Learner) -> None:
        """One version; of the first one, which is no delta, nothing is noted."""
        staged = self._stage.stage(version, version, learner.named_tensors())
        self._stage.publish(staged)
        found, name = self.measured, f"version-{version}"
        full, write_full = timed(lambda: self._full.write(staged, name))
        delta, write_delta = timed(lambda: self._delta.write(staged, name))
        _, copy_full = timed(lambda: take(HostCopy(self._home / f"fresh-{version}"), full))
        _, apply_delta = timed(lambda: take(self._copy, delta))
        if version:
            found.full.append(staged.buckets.nbytes)
            found.delta.append(self._bytes(delta))
            found.changed.append(self._changed(staged))
            for times, seconds in zip(
                (found.write_full, found.write_delta, found.copy_full, found.apply_delta),
                (write_full, write_delta, copy_full, apply_delta),
                strict=True,
            ):
                times.append(seconds)
        self._before = {name: tensor.clone() for name, tensor in staged.buckets.tensors.items()}

    def _bytes(self, delta: WeightFiles) -> int:
        """All that a host reads: the frames and the manifest."""
        return sum(file.stat().st_size for file in self._stores[1].path(delta.folder).iterdir())

    def _changed(self, staged: Staged) -> float:
        now = staged.buckets.tensors
        different = sum(int((now[name] != before).sum()) for name, before in self._before.items())
        return different / sum(tensor.numel() for tensor in now.values())


def take(copy: HostCopy, files: WeightFiles) -> None:
    chain = VersionChain(WeightStore(files.store), files, lambda: None)
    _, held = copy.take(chain, lambda: None, lambda refusal: print(f"refused: {refusal}"))
    held.release()


def timed(work: Any) -> tuple[Any, float]:
    """CPU time of all threads: what is taken from the training beside it, whatever else the machine does."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def start_model(folder: Path, words: Words, shape: TinyShape, steps: int) -> Path:
    """A model that is sometimes right, so that GRPO has something to compare."""
    write_tiny_model(folder / "blank", 0, shape)
    rate = 0.6 / shape.hidden
    trainer = {"steps": steps, "learning_rate": rate, "warmup_steps": steps // 6, "schedule": "cosine"}
    settings = words_run(folder / "blank", "sft", trainer=trainer, rollout={"groups_per_step": 64})
    demonstrate(settings, words, SHOWN_RIGHT, folder / "start")
    return folder / "start"


def measure(model: Path, words: Words, dtype: str, rate: float, steps: int) -> Measured:
    """One run, from version 0 to version `steps`."""
    settings = words_run(model, trainer={"steps": steps, "learning_rate": rate})
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"dtype": dtype})})
    with tempfile.TemporaryDirectory() as home:
        publication = Publication(Path(home), settings)
        reinforce(settings, words, publish=publication.publish)
    return publication.measured


def cells(dtype: str, rate: float, found: Measured) -> list[str]:
    """One line, in the order of COLUMNS: medians over the versions."""
    full, delta = found.median("full"), found.median("delta")
    times = [
        f"{1000 * found.median(name):.1f} ms" for name in ("write_full", "write_delta", "copy_full", "apply_delta")
    ]
    sizes = [f"{full / 1e6:.2f} MB", f"{delta / 1e6:.3f} MB", f"{delta / full:.1%}", f"{found.median('changed'):.1%}"]
    return [dtype, f"{rate:g}", *sizes, *times]


def line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def main() -> None:
    """Print the table; all versions go to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_delta", description=__doc__)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-6, 1e-5, 1e-4, 1e-3])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=8, help="versions after the first one")
    parser.add_argument("--sft-steps", type=int, default=60, help="before them")
    parser.add_argument("--hidden", type=int, default=TinyShape().hidden, help="with 4 heads, and an MLP twice as wide")
    parser.add_argument("--layers", type=int, default=TinyShape().layers)
    parser.add_argument("--json", type=Path, help="write what each version took to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = TinyShape(
        hidden=given.hidden, layers=given.layers, intermediate=2 * given.hidden, head_dim=given.hidden // 4
    )
    words, rows = make_words(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as home:
        model = start_model(Path(home), words, shape, given.sft_steps)
        print(line(COLUMNS) + "\n|" + "---|" * len(COLUMNS))
        for dtype in given.dtypes:
            for rate in given.learning_rates:
                found = measure(model, words, dtype, rate, given.steps)
                print(line(cells(dtype, rate, found)), flush=True)
                rows.append({"dtype": dtype, "learning_rate": rate, **vars(found)})
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
