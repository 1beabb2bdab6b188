"""A run's keys in Redis -> what became of every group and token, read without the product's own accounting.

`GET /v1/runs/{run}/ledger?verify=true` answers the same question, and the two have to agree.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import msgpack
from redis.asyncio import Redis

from shared.runs import Runs

PAGE = 1000
KINDS = ("dataset", "worker", "version")


@dataclass(slots=True)
class RunVerdict:
    """What was found in one run."""

    run: str
    state: str
    reason: str
    steps_asked: int
    steps_done: int
    released: int
    trained: int
    dropped: dict[str, int]
    dead_letters: int
    groups_lost: list[int]
    groups_trained_twice: list[int]
    balanced: bool
    problems: list[str] = field(default_factory=list[str])

    @property
    def perfect(self) -> bool:
        kept = not self.groups_lost and not self.groups_trained_twice and self.balanced and not self.problems
        return kept and self.state == "finished" and self.steps_done == self.steps_asked

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def judge(redis: Redis, run: str) -> RunVerdict:
    """Read everything about one run that has ended."""
    record = await Runs(redis).get(run)
    assert record is not None, f"run {run} is not in Redis"
    found = await Evidence.gather(redis, run)
    settings, counters = record.settings, found.counters
    groups = range(counters.get("next_group_id", 0))
    steps = [entry["step"] for entry in found.steps if entry["type"] == "commit"]
    by_step = Counter(group for intent in found.intents for group in intent["group_ids"])
    lost = [group for group in groups if not found.is_somewhere(group, settings.attempts_per_group, by_step)]
    problems = [*found.odd_bits(by_step), *found.odd_counters()]
    problems += [*found.odd_steps(), *found.left_over()] if record.state == "finished" else []
    token_problems = found.odd_tokens()
    return RunVerdict(
        run=run,
        state=record.state,
        reason=record.reason,
        steps_asked=settings.trainer.steps,
        steps_done=len(set(steps)),
        released=len(groups),
        trained=len(by_step),
        dropped={name.partition(":")[2]: n for name, n in counters.items() if name.startswith("dropped:")},
        dead_letters=found.dead_letters,
        groups_lost=lost,
        groups_trained_twice=sorted(group for group, times in by_step.items() if times > 1),
        balanced=not token_problems,
        problems=problems + token_problems,
    )


@dataclass(slots=True)
class Evidence:
    """All that Redis holds about one run, in plain containers."""

    counters: dict[str, int]
    bits: dict[str, set[int]]
    steps: list[dict[str, Any]]
    entries: dict[str, set[int]]
    """Stream -> the groups that have an entry there."""
    attempts: dict[int, set[int]]
    """Group -> its attempts that are stored, or on their way to be scored."""
    stored_bytes: dict[int, int]
    """Group -> bytes of its attempts: those of their arrays, and of what is scored."""
    dead_groups: set[int]
    """The groups that are kept for a re-drive."""
    open_tokens: dict[int, dict[str, int]]
    """Group -> margins of its tokens, while it is undecided or dead."""
    accounts: dict[str, dict[str, int]]
    """State -> margins."""
    pending: dict[str, int]
    dead_letters: int

    @classmethod
    async def gather(cls, redis: Redis, run: str) -> "Evidence":
        prefix = f"{{{run}}}:"
        counters = {k.decode(): int(float(v)) for k, v in (await _hash(redis, prefix + "counters")).items()}
        accounts: dict[str, dict[str, int]] = {}
        for name, tokens in (await _hash(redis, prefix + "accounts")).items():
            state, _, margin = name.decode().partition("|")
            accounts.setdefault(state, {})[margin] = int(tokens)
        groups = range(counters.get("next_group_id", 0))
        stored = {g: await _hash(redis, f"{prefix}group:{g}") for g in groups}
        arrays = {g: await _hash(redis, f"{prefix}arrays:{g}") for g in groups}
        sizes = {g: sum(len(v) for k, v in [*stored[g].items(), *arrays[g].items()] if k != b"of") for g in groups}
        attempts = {g: {int(a) for a in found} for g, found in stored.items()}
        for fields in await _entries(redis, prefix + "rollouts"):
            attempts.setdefault(int(fields[b"g"]), set()).add(msgpack.unpackb(fields[b"m"])["attempt"])
        tokens = {g: await _hash(redis, f"{prefix}tokens:{g}") for g in groups}
        return cls(
            counters=counters,
            bits={name: await _bits(redis, prefix + name) for name in ("emitted", "trained", "dropped", "evaluated")},
            steps=[msgpack.unpackb(fields[b"m"]) for fields in await _entries(redis, prefix + "steps")],
            entries={
                name: {int(fields[b"g"]) for fields in await _entries(redis, prefix + name)}
                for name in ("prompts", "rollouts", "groups")
            },
            attempts=attempts,
            stored_bytes={g: size for g, size in sizes.items() if size},
            dead_groups={int(group) for group in await redis.smembers(prefix + "dead_groups")},
            open_tokens={g: {m.decode(): int(n) for m, n in found.items()} for g, found in tokens.items() if found},
            accounts=accounts,
            pending={
                name: await _pending(redis, prefix + name, group)
                for name, group in (("prompts", "rollout"), ("rollouts", "reward"), ("groups", "trainer"))
            },
            dead_letters=len(await _entries(redis, prefix + "dead")),
        )

    @property
    def intents(self) -> list[dict[str, Any]]:
        return [entry for entry in self.steps if entry["type"] == "intent"]

    def is_somewhere(self, group: int, size: int, by_step: Counter[int]) -> bool:
        """True if the group was decided, or if something is left that will decide it."""
        if group in by_step or group in self.bits["dropped"] or group in self.bits["evaluated"]:
            return True
        if group in self.bits["emitted"]:
            return group in self.entries["groups"] and len(self.attempts.get(group, ())) >= size
        return group in self.entries["prompts"] or len(self.attempts.get(group, ())) >= size

    def odd_steps(self) -> list[str]:
        """The ledger has for each step an intent, and a commit after it."""
        found: list[str] = []
        last: dict[str, int] = {"intent": 0, "commit": 0}
        for entry in self.steps:
            if entry["step"] != last[entry["type"]] + 1:
                found.append(f"the {entry['type']} of step {entry['step']} follows that of {last[entry['type']]}")
            last[entry["type"]] = entry["step"]
            if entry["type"] == "commit" and entry["step"] > last["intent"]:
                found.append(f"step {entry['step']} was committed before its intent")
        if last["intent"] != last["commit"]:
            found.append(f"step {last['intent']} was begun, and {last['commit']} is the last one done")
        return found

    def odd_bits(self, by_step: Counter[int]) -> list[str]:
        """The bitmaps say the same as the steps, and no group was decided twice."""
        bits = self.bits
        pairs = {
            "trained by its bit or by a step, not by both": bits["trained"] ^ by_step.keys(),
            "trained and dropped": bits["trained"] & bits["dropped"],
            "evaluated and trained or dropped": bits["evaluated"] & (bits["trained"] | bits["dropped"]),
            "decided and not settled": (bits["trained"] | bits["dropped"] | bits["evaluated"]) - bits["emitted"],
            "settled and never released": bits["emitted"] - set(range(self.counters.get("next_group_id", 0))),
        }
        return [f"groups {sorted(groups)[:10]} are {what}" for what, groups in pairs.items() if groups]

    def odd_counters(self) -> list[str]:
        """The counts agree with what is counted."""
        counted, bits = self.counters, self.bits
        dropped = sum(n for name, n in counted.items() if name.startswith("dropped:"))
        kept = {g for g in self.stored_bytes if g not in bits["dropped"] and g not in bits["evaluated"]}
        kept |= self.dead_groups & self.stored_bytes.keys()
        facts = {
            "trained": (counted.get("trained", 0), len(bits["trained"])),
            "dropped": (counted.get("dropped", 0), len(bits["dropped"])),
            "dropped by reason": (dropped, len(bits["dropped"])),
            "step": (counted.get("step", 0), max((entry["step"] for entry in self.steps), default=0)),
            "released": (counted.get("released", 0) + counted.get("eval_released", 0), counted.get("next_group_id", 0)),
            "stored_bytes": (counted.get("stored_bytes", 0), sum(self.stored_bytes[g] for g in kept)),
        }
        return [f"{name} is {told}, but {is_} were found" for name, (told, is_) in facts.items() if told != is_]

    def left_over(self) -> list[str]:
        """A finished run leaves no work behind, and no service ended by an error of its own."""
        found = [f"{count} entries of {name} were never acknowledged" for name, count in self.pending.items() if count]
        failures = {name: n for name, n in self.counters.items() if name.startswith("failures:")}
        return found + [f"{name.partition(':')[2]} ended {n} times by itself" for name, n in failures.items()]

    def odd_tokens(self) -> list[str]:
        """generated = trained + evaluated + dropped + open, by every margin; trained is what the steps counted."""
        found: list[str] = []
        rest = Counter[str]()
        for state, margins in self.accounts.items():
            sign = 1 if state == "generated" else -1
            for margin, tokens in margins.items():
                rest[margin] += sign * tokens
        for group, margins in self.open_tokens.items():
            if group not in self.bits["dropped"]:
                rest.subtract(margins)
        found += [f"{tokens} tokens of {margin} are not accounted for" for margin, tokens in rest.items() if tokens]
        for state, margins in self.accounts.items():
            sums = {k: sum(n for m, n in margins.items() if m.startswith(f"{k}|")) for k in KINDS}
            if len(set(sums.values())) > 1:
                found.append(f"{state} tokens differ by margin: {sums}")
        steps = sum(int(entry["metrics"]["response_tokens"]) for entry in self.steps if entry["type"] == "commit")
        trained = sum(n for m, n in self.accounts.get("trained", {}).items() if m.startswith("dataset|"))
        if steps != trained:
            found.append(f"steps trained {steps} tokens, and {trained} are accounted as trained")
        return found


async def _hash(redis: Redis, key: str) -> dict[bytes, bytes]:
    return cast(dict[bytes, bytes], await redis.hgetall(key))


async def _entries(redis: Redis, key: str) -> list[dict[bytes, bytes]]:
    found: list[dict[bytes, bytes]] = []
    after = "-"
    while page := cast(list[tuple[bytes, dict[bytes, bytes]]], await redis.xrange(key, after, count=PAGE)):
        found += [fields for _, fields in page]
        after = f"({page[-1][0].decode()}"
    return found


async def _bits(redis: Redis, key: str) -> set[int]:
    raw = cast(bytes | None, await redis.get(key)) or b""
    return {8 * at + bit for at, byte in enumerate(raw) for bit in range(8) if byte >> (7 - bit) & 1}


async def _pending(redis: Redis, key: str, group: str) -> int:
    groups = await redis.xinfo_groups(key) if await redis.exists(key) else []
    return sum(int(found["pending"]) for found in groups if found["name"].decode() == group)
