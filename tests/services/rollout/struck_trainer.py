"""A version for a run's engines, by a trainer that gets a signal when all of them wait for the bytes.

`python -m tests.services.rollout.struck_trainer REDIS RUN MODEL VERSION SIGNAL`.
"""

import asyncio
import os
import sys

from transformers import AutoModelForCausalLM

from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.rendezvous import Communicator
from services.trainer.step_ledger import StepLedger
from shared.logs import Log
from shared.redis_connection import connect

DEADLINES = Deadlines(enrol_s=3, update_s=3)


async def publish(url: str, run: str, model: str, version: int) -> None:
    """One version, to the engines that are up."""
    publisher = WeightPublisher(StepLedger(connect(url), run), "127.0.0.1", Log("trainer"), deadlines=DEADLINES)
    parameters = AutoModelForCausalLM.from_pretrained(model).named_parameters()
    await publisher.publish(publisher.stage(version, version, parameters))


def main() -> None:
    """Publish, and be struck."""
    url, run, model, version, number = sys.argv[1:]
    Communicator.broadcast = lambda *_: os.kill(os.getpid(), int(number))
    asyncio.run(publish(url, run, model, int(version)))


if __name__ == "__main__":
    main()
