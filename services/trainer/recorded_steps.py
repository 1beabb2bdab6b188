"""The number of a recorded step -> its intent, its metrics and its rollouts: from the archive, else from Redis."""

from dataclasses import dataclass

from redis.asyncio import Redis

from services.trainer.archive import FOLDER, OWNER, read_step
from services.trainer.fetch_payloads import fetch_rollouts
from services.trainer.recorded_run import RecordedRun
from shared.errors import RunRejected, WireError
from shared.messages import Codec, Rollout, StepCommit, StepIntent, StepRecord, WeightVersion
from shared.streams import Stream
from shared.topology import STEPS, WEIGHTS, Keys

PAGE = 1000


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step as it was trained."""

    intent: StepIntent
    metrics: dict[str, float]
    rollouts: list[Rollout]
    source: str
    """archive, redis, or rollback for a step that trained nothing."""


class RecordedSteps:
    """The steps of one run. Nothing is written."""

    def __init__(self, redis: Redis | None, run: RecordedRun) -> None:
        self._redis, self._run, self._keys = redis, run, Keys(run.run)
        mark = run.folder / FOLDER / OWNER
        self._archived = mark.exists() and mark.read_text() == run.owner
        self._intents: dict[int, StepIntent] = {}
        self._metrics: dict[int, dict[str, float]] = {}
        self.announced: dict[int, WeightVersion] = {}
        """The versions that were published, as far as Redis still knows them."""

    async def open(self) -> None:
        """Read what Redis knows of the steps and the versions, but for their payloads."""
        if self._redis is None:
            return
        steps: Stream[StepRecord] = Stream(self._redis, self._run.run, STEPS)
        last = "0"
        while page := await steps.read(last, PAGE):
            last = page[-1][0]
            for _, record in page:
                self._keep(record)
        weights: Stream[WeightVersion] = Stream(self._redis, self._run.run, WEIGHTS)
        last = "0"
        while versions := await weights.read(last, PAGE):
            last = versions[-1][0]
            self.announced |= {one.version: one for _, one in versions}

    def newest(self) -> int:
        """The last step that is known to be committed; 0 if there is none."""
        files = (self._run.folder / FOLDER).glob("step_*.msgpack.zst") if self._archived else ()
        archived = [int(path.name.removeprefix("step_").partition(".")[0]) for path in files]
        return max([*archived, *self._metrics], default=0)

    def parent(self, step: int) -> int:
        """The version that a step starts from; the one before for a step that is recorded nowhere."""
        intent = self._intents.get(step)
        if intent is None and self._archived and (archived := read_step(self._run.folder, step)) is not None:
            intent = archived.intent
        return intent.weight_version if intent is not None and intent.is_rollback else step - 1

    async def read(self, step: int) -> RecordedStep:
        """RunRejected if the step was not done, or if what it trained is not kept or not readable any more."""
        archived = read_step(self._run.folder, step) if self._archived else None
        if archived is not None:
            metrics = archived.metrics or self._metrics.get(step, {})
            source = "rollback" if archived.intent.is_rollback else "archive"
            return RecordedStep(archived.intent, metrics, self._decoded(step, archived.payloads), source)
        if self._redis is None or step not in self._intents:
            raise RunRejected(self._gone(step, "is in no archive, and Redis does not know it"))
        intent = self._intents[step]
        if intent.is_rollback:
            return RecordedStep(intent, self._metrics.get(step, {}), [], "rollback")
        names = [self._keys.group(group_id) for group_id in intent.group_ids]
        there = await self._redis.exists(*names)
        if there < len(names):
            lost = f"trained {len(names)} groups, of which Redis keeps {there}, and is in no archive"
            raise RunRejected(self._gone(step, lost))
        rollouts = await fetch_rollouts(self._redis, self._keys, intent.group_ids)
        return RecordedStep(intent, self._metrics.get(step, {}), rollouts, "redis")

    def _keep(self, record: StepRecord) -> None:
        if isinstance(record, StepCommit):
            self._metrics[record.step] = record.metrics
        else:
            self._intents[record.step] = record

    def _decoded(self, step: int, payloads: list[list[bytes]]) -> list[Rollout]:
        codec: Codec[Rollout] = Codec(Rollout)
        try:
            return [codec.decode(payload) for group in payloads for payload in group]
        except WireError as error:
            raise RunRejected(f"the archive of step {step} of run {self._run.run} holds {error}; restore it") from error

    def _gone(self, step: int, why: str) -> str:
        name = self._run.run
        where = f"below the table of `sluice weights list {name}` are the steps that can be had"
        advice = "set trainer.archive = true in a run whose steps are to be trained again after its checkpoints"
        return f"step {step} of run {name} {why}; {where}; {advice}"
