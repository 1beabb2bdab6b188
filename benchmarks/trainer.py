"""Random samples -> tokens a second, MFU and memory of training steps: `python -m benchmarks.trainer`.

Full parameters, bfloat16 with float32 weights and moments, AdamW, clipped gradients, GRPO's loss over all tokens; a
step has four micro-batches of 16,384 tokens. MFU is the FLOPs of the model (`services.trainer.flops`: of attention
those that causality leaves, and nothing that is computed again) in a second, over a peak: the vendor's figure for the
H100 SXM in dense bfloat16, 989 TFLOP/s, or the 800 TFLOP/s that large products of matrices reach on one.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.trainer_peer import peer_step
from benchmarks.trainer_product import product_step
from benchmarks.trainer_samples import StepSamples, random_samples
from benchmarks.trainer_shapes import SHAPES, Kind, Shape, lengths_of, write_model

PEAKS = {"mfu_989": 989e12, "mfu_800": 800e12}
WARM_UP = 2
"""Steps after the first one that are not measured."""
OPERATORS = 30
T = TypeVar("T")
Step = Callable[[StepSamples], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to train."""

    name: str
    is_product: bool = True
    is_compiled: bool = False
    recompute: bool = False


PRODUCT, COMPILED = Case("product"), Case("product, compiled", is_compiled=True)
RECOMPUTED = Case("product, recomputed", recompute=True)
BOTH = Case("product, compiled and recomputed", is_compiled=True, recompute=True)
PEER, PEER_RECOMPUTED = Case("transformers", False), Case("transformers, recomputed", False, recompute=True)
CASES: dict[Kind, list[Case]] = {
    "2k": [PRODUCT, COMPILED, PEER],
    "16k": [PRODUCT, COMPILED, RECOMPUTED, BOTH, PEER, PEER_RECOMPUTED],
    "mixed": [PRODUCT, COMPILED, PEER],
}


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured; None where the case ran out of memory."""

    row: Kind
    case: str
    samples: int
    tokens: int
    """Of a step."""
    tflops: float
    """Of a step, in 10^12 operations."""
    loss: float | None = None
    """Of the first step, which is the same for every case."""
    seconds: float | None = None
    """Of a step, the mean of those that were measured."""
    first_seconds: float | None = None
    """Of the first step, with compilation where there is one."""
    peak_gib: float | None = None
    """Most memory that tensors took, in 2^30 bytes; None on a CPU."""

    def speeds(self) -> dict[str, float]:
        """Tokens a second and MFU; nothing without a time."""
        if self.seconds is None:
            return {}
        return {"tokens_s": self.tokens / self.seconds} | {
            name: self.tflops * 1e12 / self.seconds / peak for name, peak in PEAKS.items()
        }


def measure(kind: Kind, case: Case, shape: Shape, folder: Path, device: torch.device, steps: int) -> Result:
    """A fresh model; one step that may compile, some that warm up, and `steps` that are measured."""
    lengths = lengths_of(kind, shape)
    unmeasured = Result(kind, case.name, len(lengths), sum(lengths), shape.flops().of(lengths) / 1e12)
    try:
        step = _open(case, folder, shape, device)
        samples = [random_samples(lengths, shape.vocabulary, number) for number in range(1 + WARM_UP + steps)]
        first, loss = _seconds(lambda: step(samples[0])["loss"], device)
        for own in samples[1 : 1 + WARM_UP]:
            step(own)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        total, _ = _seconds(lambda: [step(own) for own in samples[1 + WARM_UP :]], device)
    except torch.OutOfMemoryError:
        return unmeasured
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return Result(
        **{**asdict(unmeasured), "loss": loss, "seconds": total / steps, "first_seconds": first, "peak_gib": peak}
    )


def operators(kind: Kind, case: Case, shape: Shape, folder: Path, device: torch.device) -> str:
    """The table of the operators that a step spends the most time in."""
    step, lengths = _open(case, folder, shape, device), lengths_of(kind, shape)
    samples = [random_samples(lengths, shape.vocabulary, number) for number in range(2 + WARM_UP)]
    for own in samples[:-1]:
        step(own)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as recorded:
        step(samples[-1])
    by = f"self_{device.type}_time_total"
    table = recorded.key_averages().table(sort_by=by, row_limit=OPERATORS, max_name_column_width=90)
    return f"{kind}: {case.name}\n{table}"


def table(results: list[Result]) -> str:
    """A line for each result."""
    lines = [
        "| row | case | tokens/s | MFU of 989 | MFU of 800 | peak GiB | s a step | s first step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        speeds = result.speeds()
        if result.seconds is None:
            lines.append(f"| {result.row} | {result.case} | out of memory | | | | | |")
            continue
        memory = "" if result.peak_gib is None else f"{result.peak_gib:.1f}"
        lines.append(
            f"| {result.row} | {result.case} | {speeds['tokens_s']:,.0f} | {speeds['mfu_989']:.1%} "
            f"| {speeds['mfu_800']:.1%} | {memory} | {result.seconds:.3f} | {result.first_seconds:.1f} |"
        )
    return "\n".join(lines)


def cases_of(kind: Kind, is_compiled: bool, only: str | None) -> list[Case]:
    """The cases of a row, without those that compile; the one called `only`, or those whose names contain it."""
    cases = [case for case in CASES[kind] if is_compiled or not case.is_compiled]
    if only is None:
        return cases
    return [case for case in cases if case.name == only] or [case for case in cases if only in case.name]


def main() -> None:
    """See the module."""
    arguments = _arguments()
    device, shape = torch.device(arguments.device), SHAPES[arguments.shape]
    results: list[Result] = []
    cases = [(kind, case) for kind in arguments.rows for case in cases_of(kind, arguments.compile, arguments.only)]
    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, Path(folder), device)
        for kind, case in cases:
            results.append(measure(kind, case, shape, Path(folder), device, arguments.steps))
            _forget(device)
            print(table(results[-1:]).splitlines()[-1], flush=True)
            if arguments.json:
                _write(Path(arguments.json), results, arguments, device)
            if arguments.profile and results[-1].seconds is not None:
                with Path(arguments.profile).open("a") as file:
                    file.write(operators(kind, case, shape, Path(folder), device) + "\n")
                _forget(device)
    print("\n" + table(results))


def _open(case: Case, folder: Path, shape: Shape, device: torch.device) -> Step:
    if case.is_product:
        return product_step(folder, shape, device, case.is_compiled, case.recompute)
    return peer_step(folder, device, case.recompute)


def _seconds(function: Callable[[], T], device: torch.device) -> tuple[float, T]:
    _wait(device)
    began = time.perf_counter()
    value = function()
    _wait(device)
    return time.perf_counter() - began, value


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _forget(device: torch.device) -> None:
    """Give the memory of the last case back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _write(file: Path, results: list[Result], arguments: argparse.Namespace, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    made = {"device": name, "torch": torch.__version__, "shape": arguments.shape, "steps": arguments.steps}
    file.write_text(json.dumps({**made, "rows": [asdict(r) | r.speeds() for r in results]}, indent=1) + "\n")


def _kinds(names: str) -> list[Kind]:
    kinds = names.split(",")
    unknown = [kind for kind in kinds if kind not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; write some of {','.join(CASES)}")
    return cast(list[Kind], kinds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trainer",
        description="How fast the trainer trains, and plain transformers beside it.",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument(
        "--rows", type=_kinds, default="2k,16k,mixed", help="of 2k, 16k and mixed, with commas between them"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--compile", action="store_true", help="the compiled cases too")
    parser.add_argument("--only", help="the case of this name, or cases whose names contain it")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--profile", help="file for the operators that take the most time, case by case")
    return parser.parse_args()


if __name__ == "__main__":
    main()
