"""ServerArgs as JSON -> the real SGLang server, in a process that dies with the one that launched it.

`python -m services.rollout.engine_server PARENT_PID '{"model_path": ...}'`. The command line of SGLang itself cannot
set every field of ServerArgs; its constructor can.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

from services.rollout.name_streamed_versions import name_streamed_versions
from services.rollout.refuse_unknown_tokens import refuse_unknown_tokens
from services.rollout.serve_adapters import serve_adapters
from services.rollout.show_adapters import show_adapters

PR_SET_PDEATHSIG = 1
ADOPTER, NOBODY = 1, 0
"""The process that orphans belong to, where no other one takes them; and no process."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


def serve(arguments: dict[str, Any]) -> None:
    """Run the server until it is told to stop."""
    # Imported late: SGLang starts its schedulers as new processes that import this module first.
    from sglang.launch_server import run_server  # noqa: PLC0415
    from sglang.srt.server_args import ServerArgs  # noqa: PLC0415
    from sglang.srt.utils import kill_process_tree  # noqa: PLC0415

    try:
        run_server(ServerArgs(**arguments))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__mp_main__":  # a scheduler, or another process that the server starts
    # SGLang says so too, after many seconds of imports: a server killed before would leave them behind for ever. The
    # parent of one that is adopted already has no number that matches.
    die_with_parent(os.getppid() if os.getppid() != ADOPTER else NOBODY)
    name_streamed_versions()
    show_adapters()

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    refuse_unknown_tokens()
    serve_adapters()
    serve(json.loads(sys.argv[2]))
