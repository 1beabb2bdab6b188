"""Memory that one process lends to others of its machine: what torch needs to open it there, as plain data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class MemoryHandle:
    """Some bytes, for one reader. Byte strings are in base64."""

    kind: Literal["cuda", "shared"]
    """cuda: on a GPU, by CUDA IPC; shared: on the host, by a name in /dev/shm."""
    nbytes: int
    handle: str
    """cuda: of the allocation that holds them; shared: the name."""
    manager: str = ""
    """shared: the socket of torch's manager of such names."""
    device: str = ""
    """cuda: UUID of the GPU."""
    offset: int = 0
    """cuda: where they begin in the allocation."""
    counter: str = ""
    """cuda: name of the file in which the reader says that it has finished, and where in it."""
    counter_offset: int = 0
    event: str = ""
    """cuda: handle of the event after which they may be read."""
    event_required: bool = False


def machine_id() -> str:
    """Names this machine until it is started anew; containers of one machine have the same."""
    return BOOT.read_text().strip()
