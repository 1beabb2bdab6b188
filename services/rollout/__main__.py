"""`python -m services.rollout`: the worker process."""

from services.rollout.worker import run

if __name__ == "__main__":
    run()
