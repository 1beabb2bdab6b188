"""`python -m services.trainer`: follows the active run and trains it."""

from services.trainer.serve_run import serve
from shared.service import main

if __name__ == "__main__":
    main("trainer", "trainer", lambda deployment: deployment.health.trainer_port, serve, kinds=("rl", "sft"))
