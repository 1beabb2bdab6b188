"""Sequences of one length -> TFLOP/s of each kernel that attends to them on a GPU: `python -m benchmarks.attention`.

A pack of 16,384 tokens with 16 query heads, 8 key heads and 128 elements each, as in the benchmark of the trainer:
forward and backward pass, causal. The kernels are the one that takes packs as they are and those of padded batches;
`batched` is what the trainer makes of both. Ragged packs have lengths of 85 % to 100 % of the one that is told.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from services.trainer.batched_attention import batched_attention
from services.trainer.packed_attention import plan_attention
from services.trainer.varlen_attention import varlen_attention

TOKENS, HEADS, KV_HEADS, DIM = 16384, 16, 8, 128
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
PADDED = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
REPEATS = 10
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries, keys and values [tokens, heads, dim] -> attended values of the same shape as the queries."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One kernel at one length."""

    length: int
    """Of the longest sequence."""
    kernel: str
    tokens: int
    pairs: int
    """Of a token and one that it sees, over the whole pack."""
    forward_ms: float | None = None
    """None where the kernel does not take it."""
    backward_ms: float | None = None
    first_s: float | None = None
    """Seconds of the first forward and backward pass at this length."""
    failure: str = ""

    def tflops(self) -> float:
        """Of both passes, for the pairs that causality leaves: 2 products forward, 5 backward (Dao 2023, section 4)."""
        assert self.forward_ms is not None and self.backward_ms is not None
        return 7 * 2 * self.pairs * HEADS * DIM / (self.forward_ms + self.backward_ms) / 1e9


def ragged(length: int) -> list[int]:
    """As many lengths as there are of `length` in TOKENS, the longest first."""
    count = TOKENS // length
    return [length - int(0.15 * length * (number + 0.5) / count) for number in range(count)]


def packed(lengths: list[int]) -> Attend:
    """The kernel that takes a pack as it is."""
    plan = plan_attention(lengths).to(torch.device("cuda"))
    return lambda q, k, v: varlen_attention(q, k, v, plan.cu_seqlens, plan.longest, None, None)


def batched(lengths: list[int]) -> Attend:
    """The trainer's operator: padded batches where they are faster."""
    plan = plan_attention(lengths).to(torch.device("cuda"))
    return lambda q, k, v: batched_attention(q, k, v, plan.cu_seqlens, plan.batches, None)


def padded(length: int, backend: SDPBackend) -> Attend:
    """A kernel for batches of one length."""

    def attend(*rows: torch.Tensor) -> torch.Tensor:
        batch = [tensor.unflatten(0, (-1, length)).transpose(1, 2) for tensor in rows]
        with sdpa_kernel(backend):
            attended = scaled_dot_product_attention(batch[0], batch[1], batch[2], is_causal=True, enable_gqa=True)
        return attended.transpose(1, 2).flatten(0, 1)

    return attend


def measure(lengths: list[int], kernel: str, attend: Attend) -> Speed:
    """The median of several passes, by the device's clock."""
    about = (max(lengths), kernel, sum(lengths), sum(n * n for n in lengths) // 2)
    q, k, v = (
        torch.randn(sum(lengths), heads, DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    upstream = torch.randn_like(q)
    began = time.perf_counter()
    try:
        torch.autograd.grad(attend(q, k, v), [q, k, v], upstream)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return Speed(*about, failure=str(error).partition("\n")[0])
    first = time.perf_counter() - began
    times = [_passes(attend, q, k, v, upstream) for _ in range(REPEATS)]
    forward, backward = (sorted(column)[REPEATS // 2] for column in zip(*times, strict=True))
    return Speed(*about, forward, backward, first)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description="How fast the kernels of attention are, by length."
    )
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    speeds: list[Speed] = []
    for length in LENGTHS:
        equal, unequal = [length] * (TOKENS // length), ragged(length)
        cases = [(equal, "packed", packed(equal)), (equal, "batched", batched(equal))]
        cases += [(equal, name, padded(length, backend)) for name, backend in PADDED.items()]
        cases += [(unequal, "packed, ragged", packed(unequal)), (unequal, "batched, ragged", batched(unequal))]
        for lengths, name, attend in cases:
            speeds.append(measure(lengths, name, attend))
            print(_line(speeds[-1]), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(speed) for speed in speeds], indent=1) + "\n")


def _passes(
    attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, upstream: torch.Tensor
) -> tuple[float, float]:
    """Milliseconds of a forward and of a backward pass."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    marks[0].record()
    attended = attend(q, k, v)
    marks[1].record()
    torch.autograd.grad(attended, [q, k, v], upstream)
    marks[2].record()
    torch.cuda.synchronize()
    return marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])


def _line(speed: Speed) -> str:
    if speed.failure:
        return f"{speed.length:6} {speed.kernel:15} {speed.failure}"
    return (
        f"{speed.length:6} {speed.kernel:15} forward {speed.forward_ms:7.3f} ms, backward {speed.backward_ms:7.3f} ms, "
        f"{speed.tflops():4.0f} TFLOP/s, first {speed.first_s:5.2f} s"
    )


if __name__ == "__main__":
    main()
