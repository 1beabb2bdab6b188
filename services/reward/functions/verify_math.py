"""Child process: (answer, label) frames on standard input -> (equal, detail) frames on standard output."""

import os
import resource
import signal
import struct
import sys
from functools import lru_cache
from typing import Any, BinaryIO, cast

import msgpack

HEADER = struct.Struct("<I")
MEMORY_BYTES = 4 * 2**30
"""A comparison that needs more memory fails instead of taking the machine down."""
GRACE_S = 1.0
"""The parent ends an overrun; should it have died, this process ends itself a little later."""


def compare(answer: str, label: str) -> tuple[bool, dict[str, Any]]:
    """True if the last mathematical expression of the answer equals the label.

    A label that is no mathematics is compared as text, which the detail says.
    """
    from math_verify import verify  # noqa: PLC0415  a second of imports that the parent can do without

    gold = _parse_label(label)
    if not gold:
        return answer.strip() == label, {"label_unparsed": True}
    return bool(verify(gold, _parse(answer), timeout_seconds=None)), {}


@lru_cache(1024)
def _parse_label(label: str) -> list[Any]:
    """Labels are LaTeX without its dollars, or plain numbers; all attempts of a group have the same one."""
    return _parse(f"${label}$") or _parse(label)


def _parse(text: str) -> list[Any]:
    from math_verify import parse  # noqa: PLC0415

    return parse(text, parsing_timeout=cast(int, None))


def answer_frames(source: BinaryIO, target: BinaryIO, limit_s: float) -> None:
    """Serve until the parent closes the pipe."""
    while len(head := source.read(HEADER.size)) == HEADER.size:
        answer, label = cast(list[str], msgpack.unpackb(source.read(HEADER.unpack(head)[0])))
        # without a handler the alarm ends the process, even inside a loop of C code
        signal.setitimer(signal.ITIMER_REAL, limit_s + GRACE_S)
        write_frame(target, _guarded(answer, label))
        signal.setitimer(signal.ITIMER_REAL, 0)


def write_frame(target: BinaryIO, value: object) -> None:
    body = cast(bytes, msgpack.packb(value))
    target.write(HEADER.pack(len(body)) + body)
    target.flush()


def _guarded(answer: str, label: str) -> tuple[bool, dict[str, Any]]:
    try:
        return compare(answer, label)
    except (Exception, RecursionError, MemoryError) as error:  # noqa: BLE001  any text may come in; it equals nothing
        return False, {"error": type(error).__name__}


def main(limit_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent closes the pipe
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    compare("1", "1")
    write_frame(target, "ready")
    answer_frames(sys.stdin.buffer, target, limit_s)


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)  # math-verify warns that its own time limit is off: this process has another one
    main(float(sys.argv[1]))
