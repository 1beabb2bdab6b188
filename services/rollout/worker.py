"""An active run -> its prompts generated (rl) or tokenised (sft, dpo), by the parts that are put together here."""

import asyncio
import os
import socket
from pathlib import Path

from services.rollout.demonstration import read_demonstration
from services.rollout.generate_group import GroupGenerator, load_generate
from services.rollout.generation_loop import GenerationLoop, Limits
from services.rollout.model_tokenizer import ModelTokenizer, load_tokenizer
from services.rollout.partial_group import Partials
from services.rollout.preference import read_preference
from services.rollout.router_connections import RouterConnections
from services.rollout.row_loop import RowLoop
from services.rollout.sampler import Sampler
from services.rollout.written_rollout import ReadRow, RowReader
from shared.messages import Prompt
from shared.scripts import Ledger
from shared.service import Serving, main
from shared.streams import Delivery, Stream
from shared.topology import PROMPTS, Keys

READ_ROW: dict[str, ReadRow] = {"sft": read_demonstration, "dpo": read_preference}
"""By the kind of the run, where the rows hold the answers."""


async def serve(serving: Serving) -> None:
    """Work on one run until it is cancelled.

    Raises:
        RunRejected: the model's folder or its tokenizer is missing.
        PluginError: the generate plugin does not load.
    """
    settings = serving.record.settings
    work = _serve_rl if settings.kind == "rl" else _serve_rows
    model, chat = settings.model, settings.data.chat_template
    tokenizer = await asyncio.to_thread(load_tokenizer, Path(model.path), model.trust_remote_code, chat)
    delivery = Delivery(settings.delivery.lease_s, settings.delivery.max_deliveries)
    await work(serving, tokenizer, Stream(serving.redis, serving.run, PROMPTS, serving.place.name, delivery))


async def _serve_rows(serving: Serving, tokenizer: ModelTokenizer, prompts: Stream[Prompt]) -> None:
    reader = RowReader(READ_ROW[serving.record.settings.kind], tokenizer, serving.place.name)
    ledger = Ledger(serving.redis, Keys(serving.run))
    loop = RowLoop(prompts, ledger, reader.attempts, serving.place.log, serving.await_redis())
    serving.ready()
    await loop.run()


async def _serve_rl(serving: Serving, tokenizer: ModelTokenizer, prompts: Stream[Prompt]) -> None:
    settings, place = serving.record.settings.rollout, serving.place
    generate = load_generate(settings.generate)
    ledger = Ledger(serving.redis, Keys(serving.run))
    async with RouterConnections(place.deployment.router_url, settings.request_deadline_s) as router:
        limits, redis = Limits(settings.concurrency, settings.request_deadline_s), serving.await_redis()
        tokens, seconds = settings.partial_tokens, settings.partial_seconds
        partials = Partials(ledger, place.log, place.name, tokens, seconds, limits.deadline_s, redis)
        groups = GroupGenerator(tokenizer, Sampler(router, place.log), generate, place.name, partials)
        loop = GenerationLoop(prompts, ledger, groups.generate, place.log, limits, redis, groups.forget)
        serving.ready()
        await loop.run()


def run() -> None:
    """The process: follow runs until SIGTERM."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    main("rollout", name, lambda deployment: deployment.health.rollout_port, serve, kinds=("rl", "sft", "dpo"))
