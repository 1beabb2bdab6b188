"""Evaluation by pinned version: when one is due, and its tally in Redis."""

from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from shared.run_settings import RunSettings
from shared.topology import Keys


@dataclass(frozen=True, slots=True)
class Tally:
    """The evaluation of one dataset by one version, so far."""

    dataset: str
    groups: int
    done: int
    attempts: int
    dropped: int
    off_version: int
    """Groups with a token that another version sampled."""
    reward_sum: float

    @property
    def complete(self) -> bool:
        return self.groups > 0 and self.done >= self.groups

    @property
    def reward_mean(self) -> float:
        """Mean reward of the attempts; dropped groups do not count."""
        return self.reward_sum / self.attempts if self.attempts else 0.0


def is_due(settings: RunSettings, version: int) -> bool:
    """True if this version is evaluated: the one that the run begins with, every `eval.every`-th and the last one."""
    first = settings.branch.step if settings.branch else 0
    wanted = version % settings.eval.every == 0 or version in (first, settings.trainer.steps)
    return bool(settings.eval.datasets) and wanted and version >= first


async def read_tallies(redis: Redis, keys: Keys, version: int) -> list[Tally]:
    """The tallies of a version, by dataset; empty if the feeder has not begun it."""
    raw = cast(dict[bytes, bytes], await redis.hgetall(keys.evaluation(version)))
    fields = {name.decode(): float(value) for name, value in raw.items()}
    names = sorted({name.partition("|")[0] for name in fields})
    return [
        _tally(name, {k.partition("|")[2]: v for k, v in fields.items() if k.startswith(f"{name}|")}) for name in names
    ]


def is_complete(settings: RunSettings, tallies: list[Tally]) -> bool:
    """True if every dataset of the evaluation is answered and scored."""
    return {t.dataset for t in tallies if t.complete} >= set(settings.eval.datasets)


def _tally(name: str, fields: dict[str, float]) -> Tally:
    def count(field: str) -> int:
        return int(fields.get(field, 0))

    return Tally(
        dataset=name,
        groups=count("groups"),
        done=count("done"),
        attempts=count("attempts"),
        dropped=count("dropped"),
        off_version=count("off_version"),
        reward_sum=fields.get("reward", 0.0),
    )
