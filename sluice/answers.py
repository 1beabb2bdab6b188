"""JSON answers of the gateway -> small typed objects; fields that a newer gateway adds are kept aside."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

A = TypeVar("A", bound="Answer")
ENDED = ("finished", "stopped", "failed")


class Answer(BaseModel):
    """One object of the REST API."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Dataset(Answer):
    """A stored dataset."""

    name: str
    rows: int
    bytes: int
    sha256: str
    format: str
    created: float


class Evaluation(Answer):
    """The evaluation of one dataset by one weight version, so far."""

    version: int
    dataset: str
    groups: int
    done: int
    attempts: int
    dropped: int
    off_version: int
    reward_mean: float
    complete: bool


class Run(Answer):
    """A run, its progress and its settings; times are seconds since the epoch."""

    run: str
    kind: str
    state: str
    reason: str
    created: float
    started: float | None
    ended: float | None
    step: int
    steps: int
    weight_version: int | None
    counters: dict[str, Any]
    services: list[str]
    evaluations: list[Evaluation]
    metrics: dict[str, float]
    settings: dict[str, Any]

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class Step(Answer):
    """One committed optimizer step."""

    step: int
    weight_version: int
    metrics: dict[str, float]


class Sample(Answer):
    """One scored attempt."""

    group_id: int
    attempt: int
    dataset: str
    row: int
    kind: str
    prompt: str | list[dict[str, Any]]
    text: str
    label: Any
    reward: float | None
    reward_detail: dict[str, Any]
    finish_reason: str
    weight_versions: list[tuple[int, int]]


class StreamEvent(Answer):
    """One server-sent event of a run."""

    event: str
    id: str
    data: Any
