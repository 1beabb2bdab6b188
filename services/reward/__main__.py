"""`python -m services.reward`: the reward service."""

import os
import socket

from services.reward.serve import serve
from shared.service import main

if __name__ == "__main__":
    main("reward", f"{socket.gethostname()}-{os.getpid()}", lambda d: d.health.reward_port, serve, ("rl",))
