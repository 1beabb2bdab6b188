"""The orders of rank 0 -> the same calls on this rank, until it is dismissed or rank 0 is gone."""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.trainer.checkpoint import Checkpoints, Writing
from services.trainer.compute_thread import in_memory, set_up_threads
from services.trainer.fetch_payloads import fetch_step
from services.trainer.learner import Learner
from services.trainer.load_model import choose_device
from services.trainer.open_learner import open_learner
from services.trainer.orders import Order, Orders
from services.trainer.ranks import Ranks
from services.trainer.settled_heap import clear_heap, settle_heap
from services.trainer.share_step import share_of
from shared.await_redis import AwaitRedis
from shared.deployment import Deployment
from shared.errors import RunRejected
from shared.logs import Log
from shared.messages import Codec, Rollout, StepIntent
from shared.redis_connection import connect_checked
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.service import run_folder
from shared.settings import validate
from shared.topology import Keys


@dataclass
class OpenRun:
    """A run of which this rank holds its part."""

    run: str
    settings: RunSettings
    folder: Path
    learner: Learner
    checkpoints: Checkpoints
    writing: Writing | None = None

    def settle(self) -> None:
        """Wait for this rank's part of the checkpoint that is on its way."""
        if self.writing is not None:
            self.checkpoints.finish(self.writing)
            self.writing = None


class Follower:
    """One rank but the first. A failure ends the process, and with it torchrun and the other ranks."""

    def __init__(self, deployment: Deployment, ranks: Ranks, orders: Orders, log: Log) -> None:
        self._deployment, self._ranks, self._orders, self._log = deployment, ranks, orders, log
        self._open: OpenRun | None = None

    def follow(self) -> None:
        """Carry out orders until the last one.

        Raises:
            RuntimeError: rank 0 is gone.
        """
        # a stop of the service reaches all ranks at once; this one ends when rank 0, which may be in a step, says so
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while (order := self._orders.receive()).name != "exit":
            self._carry_out(order)

    def _carry_out(self, order: Order) -> None:
        try:
            with in_memory():
                self._do(order)
        except RunRejected as error:
            asyncio.run(self._reject(str(order.given["run"]) if self._open is None else self._open.run, error))
            raise

    def _do(self, order: Order) -> None:
        given = order.given
        if order.name == "open":
            self._open = self._opened(given["run"], given["owner"], given["settings"])
            return
        assert self._open is not None, f"rank 0 orders {order.name} before it opens a run"
        self._within(self._open)[order.name](given)

    def _within(self, run: OpenRun) -> dict[str, Callable[[dict[str, object]], None]]:
        return {
            "train": lambda given: self._train(run, given["intent"]),
            "save": lambda given: self._save(run, given["step"]),
            "load": lambda given: self._load(run, given["step"]),
            "gather": lambda _: self._gather(run),
            "export": lambda given: run.learner.export(Path(str(given["folder"]))),
        }

    def _opened(self, run: str, owner: str, tree: dict[str, object]) -> OpenRun:
        if self._open is not None:
            self._open.settle()
            self._open = None
            clear_heap()
        settings = validate(RunSettings, tree, f"run {run}")
        set_up_threads(settings.trainer.threads)
        folder = run_folder(self._deployment, run)
        learner = open_learner(settings, choose_device(settings.engine.device), self._ranks)
        kept = Checkpoints(folder / "checkpoints", owner, settings.trainer.keep_checkpoints, self._log, self._ranks)
        settle_heap()
        return OpenRun(run, settings, folder, learner, kept)

    def _train(self, run: OpenRun, encoded: object) -> None:
        assert isinstance(encoded, bytes)
        intent = Codec[StepIntent](StepIntent).decode(encoded)
        share = share_of(run.settings, intent, self._ranks)
        run.learner.train(asyncio.run(self._fetch(run, intent, share.attempts)), intent, share)

    async def _fetch(self, run: OpenRun, intent: StepIntent, wanted: dict[int, list[int] | None]) -> list[Rollout]:
        place = self._deployment.redis
        redis = await connect_checked(place.url, place.outage_deadline_s)
        try:
            patient = AwaitRedis(self._log, run.run, place.outage_deadline_s)
            return await patient(lambda: fetch_step(redis, Keys(run.run), run.folder, intent, wanted))
        finally:
            await redis.aclose()

    def _save(self, run: OpenRun, step: object) -> None:
        assert isinstance(step, int)
        run.settle()
        run.writing = run.checkpoints.begin(step, run.learner.state())

    def _load(self, run: OpenRun, step: object) -> None:
        assert isinstance(step, int)
        state = run.learner.state()
        run.checkpoints.fill(run.checkpoints.at(step), state)
        run.learner.load_state(state)

    def _gather(self, run: OpenRun) -> None:
        for _ in run.learner.named_tensors():
            pass

    async def _reject(self, run: str, error: RunRejected) -> None:
        """Fail the run with the reason, which rank 0 will never hear: this process ends, and with it all others."""
        redis = await connect_checked(self._deployment.redis.url, self._deployment.redis.connect_deadline_s)
        try:
            await Runs(redis).fail(run, f"trainer, rank {self._ranks.rank}: {error}")
        finally:
            await redis.aclose()
