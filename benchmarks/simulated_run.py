"""Run settings -> a whole run in virtual time: what each step trained, and what became of every group.

Real are Redis, the release of groups under the admission rule, the streams, the join and its filters, the trainer's
buffer and its ledger. Simulated are time, the engines, the scores and the optimizer step.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from redis.asyncio import Redis

from benchmarks.long_tail import LongTail
from benchmarks.run_trace import RunTrace, StepTrace, trace_step
from benchmarks.simulated_engines import FOREVER, Engine, SimulatedEngines
from benchmarks.virtual_time import NothingHappens, VirtualTime
from services.gateway.check_row import Row
from services.gateway.dataset_rows import DatasetRows
from services.gateway.read_standing import read_standing
from services.gateway.release_training import TrainingRelease
from services.reward.group_filter import build_filter
from services.reward.join_groups import GroupJoin
from services.reward.score import Score
from services.trainer.fetch_payloads import fetch_rollouts
from services.trainer.retention import Retention
from services.trainer.sample_buffer import BatchPolicy, SampleBuffer
from services.trainer.select_groups import load_selection
from services.trainer.step_ledger import StepLedger
from shared.admission import admission_limit
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.messages import Attempt, GroupReady, StepIntent
from shared.run_settings import RunSettings
from shared.scripts import Ledger
from shared.streams import Message, Stream
from shared.topology import GROUPS, ROLLOUTS, Keys

FORGET_EVERY = 10
"""Steps between checkpoints, which let go of trained groups."""
POLL_S = 5.0
"""Virtual seconds after which a trainer that waits looks around; the real one does so more often, which costs more."""


@dataclass(frozen=True, slots=True)
class Machines:
    """How fast everything is. Between the speeds of two workers lies what makes a fleet uneven."""

    workers: int = 64
    tokens_per_s: float = 50.0
    """Of one attempt on a middling worker."""
    unevenness: float = 0.15
    """Standard deviation of the logarithm of the workers' speeds."""
    train_tokens_per_s: float = 9000.0
    step_s: float = 5.0
    """Seconds of a step that do not depend on its tokens."""
    publish_s: float = 2.0
    reward_s: float = 0.5
    late_workers: int = 0
    """Workers whose engines take up every version `late_s` seconds after it was published."""
    late_s: float = 0.0

    def fleet(self, seed: int) -> list[Engine]:
        random = np.random.default_rng((seed, 2**32))
        rates = self.tokens_per_s * np.exp(self.unevenness * random.standard_normal(self.workers))
        return [Engine(float(rate), self.late_s if i < self.late_workers else 0.0) for i, rate in enumerate(rates)]


class SimulatedRun:
    """One run; `redis` is an empty database."""

    def __init__(self, redis: Redis, settings: RunSettings, machines: Machines, tail: LongTail) -> None:
        self.redis, self.settings, self.keys = redis, settings, Keys(settings.name)
        self._machines, self._log = machines, Log("trainer")
        self.time, self.ledger, self.trace = VirtualTime(), Ledger(redis, self.keys), RunTrace()
        rows = cast(dict[str, DatasetRows], {share.name: _EndlessRows() for share in settings.data.datasets})
        self._feeder = TrainingRelease(self.ledger, "feeder", settings, rows)
        fleet = machines.fleet(tail.seed)
        self.engines = SimulatedEngines(redis, settings.name, self.time, tail, fleet, self._expect_scores)
        self._rollouts: Stream[Attempt] = Stream(redis, settings.name, ROLLOUTS, "reward", FOREVER)
        self._join = GroupJoin(self.ledger, build_filter(settings.reward.group_filter))
        self._steps = StepLedger(redis, settings.name)
        self._retention = Retention(redis, self.keys, self._steps)
        groups = VirtualGroups(redis, settings.name, self.time)
        self._buffer = SampleBuffer(groups, self.keys, _policy(settings), AwaitRedis(self._log, settings.name))
        self._offered, self._is_publishing = 0, False
        self._seed = tail.seed

    async def run(self) -> RunTrace:
        """Train all steps; NothingHappens if the run can go no further."""
        await self._begin()
        for step in range(1, self.settings.trainer.steps + 1):
            trace = await self._train(step)
            self.trace.steps.append(trace)
            if step % FORGET_EVERY == 0:
                await self._retention.forget(step)
        self.trace.work = self.engines.work
        return self.trace

    async def _begin(self) -> None:
        await self.redis.set(self.keys.feeder_lease, "feeder")
        await self.engines.open()
        await self._rollouts.open()
        await self._steps.take_over()
        await self._buffer.open()
        await self._serve(0)

    async def _train(self, step: int) -> StepTrace:
        begun = self.time.now
        batch = await self._next_batch(step)
        intent = StepIntent(step, [group.body.group_id for group in batch], step - 1, step)
        await self._steps.intend(intent, batch, self._buffer.count_stale(batch, step - 1))
        rollouts = await fetch_rollouts(self.redis, self.keys, intent.group_ids)
        trace = trace_step(intent, rollouts, begun, self.time.now - begun)
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        await self.time.sleep(self._machines.step_s + tokens / self._machines.train_tokens_per_s)
        await self._steps.commit(intent, {}, tokens)
        trace.ended = self.time.now
        await self._offer(step)
        return trace

    async def _next_batch(self, step: int) -> list[Message[GroupReady]]:
        async def leave() -> bool:
            await self._release()  # what the buffer dropped has returned its slots
            return False

        batch = await self._buffer.next_batch(step - 1, leave)
        assert batch is not None, "nobody asked the run to stop"
        await self._release()
        return batch

    async def _offer(self, version: int) -> None:
        """One version is on its way at a time, the newest of those that come meanwhile follows it."""
        self._offered = version
        if not self._is_publishing:
            self._publish()

    def _publish(self) -> None:
        version, self._is_publishing = self._offered, True

        async def serve() -> None:
            await self._serve(version)
            self._is_publishing = False
            if self._offered > version:
                self._publish()

        self.time.plan(self._machines.publish_s, serve)

    async def _serve(self, version: int) -> None:
        self.engines.served.serve(version, self.time.now)
        await self.ledger.advance("weight_version", version)
        await self._release()

    async def _release(self) -> None:
        """The feeder's turn: all that admission allows, and free workers take it."""
        while True:
            standing = await read_standing(self.redis, self.keys)
            released = await self._feeder.release(standing)
            version = standing.weight_version or 0
            over = standing.under_way + released - admission_limit(self.settings, version)
            self.trace.most_over_limit = max(self.trace.most_over_limit, over)
            self.trace.released_at += [version] * released
            if not released:
                return
            await self.engines.take_prompts()

    async def _expect_scores(self) -> None:
        self.time.plan(self._machines.reward_s, self._score)

    async def _score(self) -> None:
        """The reward worker's turn: all attempts on the stream."""
        messages = await self._rollouts.receive(1024, 0)
        attempts = [self._join.entry(message, self._score_of(message.body)) for message in messages]
        failures = await self._join.join(attempts)
        assert not failures, failures
        await self._rollouts.acknowledge(messages)
        if self.settings.reward.group_filter:
            await self._release()

    def _score_of(self, attempt: Attempt) -> Score:
        """Right or wrong, by how hard the prompt is; one prompt in four is always or never solved."""
        hardness = np.random.default_rng((self._seed, attempt.group_id, 1)).uniform(-0.25, 1.25)
        luck = np.random.default_rng((self._seed, attempt.group_id, 2, attempt.attempt)).uniform()
        return Score(float(luck > hardness))


class VirtualGroups(Stream[GroupReady]):
    """The trainer's stream; whoever waits for it lets virtual time pass."""

    def __init__(self, redis: Redis, run: str, time: VirtualTime) -> None:
        super().__init__(redis, run, GROUPS, "trainer", FOREVER)
        self._time = time

    async def receive(self, count: int, block_s: float) -> list[Message[GroupReady]]:
        """As the real one, and NothingHappens instead of waiting for ever."""
        if not block_s:
            return await super().receive(count, 0)
        until = self._time.now + max(block_s, POLL_S)
        while not (received := await super().receive(count, 0)):
            if self._time.is_over:
                raise NothingHappens(f"at {self._time.now:.0f} s the trainer waits, and nobody works")
            if not await self._time.advance(until):
                break
        return received


def _policy(settings: RunSettings) -> BatchPolicy:
    rollout = settings.rollout
    select = load_selection(rollout.selection)
    return BatchPolicy(rollout.groups_per_step, rollout.max_staleness, rollout.staleness_policy, select)


class _EndlessRows:
    """Stands where a dataset is read."""

    def __len__(self) -> int:
        return 10**9

    def read(self, row: int) -> Row:
        return Row(f"row {row}", None, {})


def simulated_settings(steps: int, **rollout: Any) -> RunSettings:
    """A run whose `rollout` section is as given."""
    return RunSettings.model_validate(
        {
            "name": "simulated",
            "model": {"path": "none"},
            "data": {"datasets": [{"name": "rows"}], "shuffle": False},
            "rollout": {"group_size": 4, "groups_per_step": 128, **rollout},
            "trainer": {"steps": steps},
        }
    )
