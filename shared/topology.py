"""Every stream and key of a run: its name, what it holds, who writes it and which consumer group reads it."""

from dataclasses import dataclass
from typing import Any

from shared.messages import Attempt, DeadLetter, Event, GroupReady, Prompt, StepRecord, WeightVersion


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream of a run. `group` is the consumer group; None is read plainly, by anybody."""

    name: str
    message: Any
    producers: tuple[str, ...]
    group: str | None
    delete_on_ack: bool = False
    """True where the work that acknowledges an entry stores all of it elsewhere in Redis."""
    keep_newest: int | None = None
    """About how many entries stay; None: all, until retention deletes what a durable checkpoint covers."""


PROMPTS = StreamSpec("prompts", Prompt, ("gateway",), "rollout", delete_on_ack=True)
ROLLOUTS = StreamSpec("rollouts", Attempt, ("rollout",), "reward", delete_on_ack=True)
GROUPS = StreamSpec("groups", GroupReady, ("reward", "rollout"), "trainer")
EVALS = StreamSpec("evals", GroupReady, ("reward",), None)
STEPS = StreamSpec("steps", StepRecord, ("trainer",), None)
WEIGHTS = StreamSpec("weights", WeightVersion, ("trainer",), None, keep_newest=1000)
EVENTS = StreamSpec("events", Event, ("gateway", "rollout", "reward", "trainer", "engine"), None, keep_newest=100_000)
DEAD = StreamSpec("dead", DeadLetter, ("rollout", "reward", "trainer"), None)

STREAMS = (PROMPTS, ROLLOUTS, GROUPS, EVALS, STEPS, WEIGHTS, EVENTS, DEAD)

RUNS = "{sluice}:runs"
"""Sorted set of run ids by time of creation."""
QUEUE = "{sluice}:queue"
"""List of runs that wait to be served, oldest first."""
ACTIVE = "{sluice}:active"
"""The id of the run that the services of this deployment serve."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run. The braces are a Redis Cluster hash tag: one run lives in one slot."""

    run: str

    def stream(self, spec: StreamSpec) -> str:
        return f"{{{self.run}}}:{spec.name}"

    @property
    def record(self) -> str:
        """Hash: settings (JSON), state, reason, times."""
        return f"{{{self.run}}}:run"

    @property
    def counters(self) -> str:
        """Hash of counts: released, dropped, emitted, trained, intended, step, weight_version, ..."""
        return f"{{{self.run}}}:counters"

    @property
    def emitted(self) -> str:
        """Bitmap by group id: the group was emitted, evaluated or dropped, once."""
        return f"{{{self.run}}}:emitted"

    @property
    def trained(self) -> str:
        """Bitmap by group id: the group belongs to a recorded step."""
        return f"{{{self.run}}}:trained"

    @property
    def dropped(self) -> str:
        """Bitmap by group id: the group was dropped, and counted with its reason."""
        return f"{{{self.run}}}:dropped"

    @property
    def evaluated(self) -> str:
        """Bitmap by group id: the group was an evaluation and is in its tally."""
        return f"{{{self.run}}}:evaluated"

    @property
    def eval_groups(self) -> str:
        """Bitmap by group id: the group was released as an evaluation."""
        return f"{{{self.run}}}:eval_groups"

    @property
    def accounts(self) -> str:
        """Hash of token counts: `<state>|<margin>`, see shared.accounts."""
        return f"{{{self.run}}}:accounts"

    @property
    def dead_groups(self) -> str:
        """Set of the groups that were dropped as dead; their attempts are kept until a person decides."""
        return f"{{{self.run}}}:dead_groups"

    @property
    def trainer_epoch(self) -> str:
        """Number: which process is the trainer of this run; one with a smaller one can write nothing to the ledger."""
        return f"{{{self.run}}}:trainer"

    @property
    def cursor(self) -> str:
        """Hash: where the feeder stands in its datasets."""
        return f"{{{self.run}}}:cursor"

    @property
    def feeder_lease(self) -> str:
        """String: the fencing token of the one feeder of this run."""
        return f"{{{self.run}}}:feeder"

    @property
    def alive(self) -> str:
        """Sorted set: `role/name` of every service that is ready for this run, by the time of its last heartbeat."""
        return f"{{{self.run}}}:alive"

    def group(self, group_id: int) -> str:
        """Hash: attempt -> scored Attempt."""
        return f"{{{self.run}}}:group:{group_id}"

    def arrays(self, group_id: int) -> str:
        """Hash: attempt -> its arrays (shared.rollout_parts), and `of`: which forward of the group put them there.

        They are written when the group is generated, and stay where they are until nobody needs the group any more.
        """
        return f"{{{self.run}}}:arrays:{group_id}"

    def unscored(self, group_id: int) -> str:
        """Hash: attempt -> Attempt, while a reward that scores whole groups waits for the rest of the group."""
        return f"{{{self.run}}}:unscored:{group_id}"

    def tokens(self, group_id: int) -> str:
        """Hash: margin -> tokens of the group's stored attempts, until the group is trained, dropped or evaluated."""
        return f"{{{self.run}}}:tokens:{group_id}"

    def partial(self, group_id: int) -> str:
        """Stream of TokenChunk: what the unfinished attempts of a group have so far."""
        return f"{{{self.run}}}:partial:{group_id}"

    def partial_owner(self, group_id: int) -> str:
        """String: who may append to the partial stream; whoever takes the group over replaces it."""
        return f"{{{self.run}}}:partial:{group_id}:owner"

    def enrolled(self, version: int) -> str:
        """Hash: engine -> JSON of its part in the rendezvous of this version."""
        return f"{{{self.run}}}:enrolled:{version}"

    def answers(self, version: int, engine: str) -> str:
        """List: an entry for each answer of this engine to this version that the trainer has not looked at."""
        return f"{{{self.run}}}:enrolled:{version}:answers:{engine}"

    def words(self, version: int) -> str:
        """Hash: engine -> JSON of what the trainer told it while it waited, paused, for the bytes of this version."""
        return f"{{{self.run}}}:words:{version}"

    def told(self, version: int, engine: str) -> str:
        """List: an entry for each word about this version that this engine has not looked at."""
        return f"{{{self.run}}}:words:{version}:{engine}"

    @property
    def versions(self) -> str:
        """Hash: weight version -> JSON of what is kept of it (shared.version_ledger)."""
        return f"{{{self.run}}}:versions"

    @property
    def rollbacks(self) -> str:
        """Hash: step that went back -> the version that it went back to (shared.lineage)."""
        return f"{{{self.run}}}:rollbacks"

    @property
    def rollback(self) -> str:
        """String: JSON of the rollback that was asked for last (shared.rollback)."""
        return f"{{{self.run}}}:rollback"

    def evaluation(self, version: int) -> str:
        """Hash: the tally of the evaluation of this version, `<dataset>|groups`, `|done`, `|reward`, ..."""
        return f"{{{self.run}}}:evaluation:{version}"
