"""A run's settings and its ledger -> the metrics of its steps in every place that was asked for."""

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from services.trainer.commit_reader import CommitReader
from services.trainer.metrics_feed import MetricsFeed, Patience, Tell
from services.trainer.recorded_run import own_folder, owner_of
from services.trainer.sinks.choose_sinks import choose_sinks
from services.trainer.sinks.sink import Place
from services.trainer.step_ledger import StepLedger
from services.trainer.tell import tell
from shared.logs import Log
from shared.messages import StepRecord
from shared.redis_connection import UNREACHABLE
from shared.service import Serving
from shared.streams import Stream
from shared.tasks import end
from shared.topology import STEPS

FOLDER = "metrics"
CLOSE_S = 30.0
"""Seconds that sinks get at the end of a run to write what they do not have yet."""
POLL_S = 0.05


class MetricsWriter:
    """All sinks of one run. None of them waits for another one, and the training for none."""

    def __init__(self, feeds: Iterable[MetricsFeed], ledger: StepLedger, log: Log, tell: Tell) -> None:
        self._feeds, self._ledger, self._log, self._tell = list(feeds), ledger, log, tell

    async def follow(self) -> None:
        """Write what is committed, until cancelled."""
        forever = asyncio.get_running_loop().create_future()
        await asyncio.gather(forever, *(feed.follow() for feed in self._feeds))

    async def reach(self, step: int) -> None:
        """Wait until every sink has a step, but not for longer than CLOSE_S."""
        try:
            async with asyncio.timeout(CLOSE_S):
                while any(feed.written < step for feed in self._feeds):
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return  # close() tells of it

    async def close(self) -> None:
        """Write what is left and close the sinks; rows that a sink did not take in time are told."""
        if not self._feeds:
            return
        try:
            taken_over, newest = await self._ledger.is_taken_over(), (await self._ledger.position()).step
        except UNREACHABLE:
            taken_over, newest = False, max(feed.written for feed in self._feeds)
        finishing = [asyncio.create_task(feed.finish(newest), name=feed.name) for feed in self._feeds]
        await asyncio.wait(finishing, timeout=CLOSE_S)
        await end(*finishing)
        for feed, task in zip(self._feeds, finishing, strict=True):
            await self._report(feed, task, 0 if taken_over else newest)
            feed.let_go()

    async def _report(self, feed: MetricsFeed, task: "asyncio.Task[None]", newest: int) -> None:
        if feed.written < newest:
            missing: dict[str, object] = {"sink": feed.name, "from_step": feed.written + 1, "to_step": newest}
            await self._tell("metrics_not_written", missing)
        elif task.cancelled() or task.exception() is not None:
            error = "not within its time" if task.cancelled() else str(task.exception())
            self._log.warning("metrics_sink_not_closed", sink=feed.name, error=error)


def open_metrics(
    serving: Serving, ledger: StepLedger, run_folder: Path, patience: Patience | None = None
) -> MetricsWriter:
    """RunRejected if a sink that was asked for is not installed. The sinks themselves are opened in `follow`."""
    settings, log, run = serving.record.settings, serving.place.log, serving.run
    chosen = choose_sinks(settings.metrics.sinks)
    folder = own_folder(run_folder / FOLDER, serving.record)
    place = Place(
        folder=folder,
        run=run,
        owner=owner_of(serving.record),
        project=settings.metrics.project,
        name=settings.metrics.name or run,
        config=settings.model_dump(mode="json"),
    )
    told = partial(tell, serving.redis, run, log)
    feeds = [
        MetricsFeed(name, opener, place, _reader(serving, ledger), log, told, patience or Patience())
        for name, opener in chosen.items()
    ]
    return MetricsWriter(feeds, ledger, log, told)


def _reader(serving: Serving, ledger: StepLedger) -> CommitReader:
    steps: Stream[StepRecord] = Stream(serving.redis, serving.run, STEPS)
    return CommitReader(steps, ledger)
