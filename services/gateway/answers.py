"""The JSON objects of the REST API, with an example each."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from services.gateway.answer_examples import DATASET, EVALUATION, RUN, SAMPLE, STEP
from shared.runs import State


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class ErrorBody(BaseModel):
    message: str
    """What was given, what is allowed, what to send instead."""
    details: list[Any]


class ErrorAnswer(BaseModel):
    """Every answer with a status of 400 or more."""

    model_config = _example({"error": {"message": "there is no run 'sum'; did you mean sums?", "details": []}})
    error: ErrorBody


class HealthAnswer(BaseModel):
    status: str


class RouterStatus(BaseModel):
    reachable: bool
    workers: int
    """Engines that are registered."""


class RedisStatus(BaseModel):
    version: str
    used_memory: int
    """Bytes."""


class StatusAnswer(BaseModel):
    active_run: str | None
    services: list[str]
    """`role/name` of every service that is ready for the active run."""
    router: RouterStatus
    redis: RedisStatus


class DatasetAnswer(BaseModel):
    model_config = _example(DATASET)
    name: str
    rows: int
    bytes: int
    sha256: str
    format: str
    created: float
    labels: bool
    text_labels: bool


class DatasetList(BaseModel):
    datasets: list[DatasetAnswer]


class RowAnswer(BaseModel):
    row: int
    prompt: str | list[dict[str, Any]]
    label: Any
    metadata: dict[str, Any]


class RowList(BaseModel):
    rows: list[RowAnswer]


class EvaluationAnswer(BaseModel):
    model_config = _example(EVALUATION)
    version: int
    dataset: str
    groups: int
    done: int
    attempts: int
    dropped: int
    off_version: int
    reward_mean: float
    complete: bool


class RunAnswer(BaseModel):
    model_config = _example(RUN)
    run: str
    kind: str
    state: State
    reason: str
    created: float
    started: float | None
    ended: float | None
    step: int
    steps: int
    weight_version: int | None
    counters: dict[str, int]
    services: list[str]
    evaluations: list[EvaluationAnswer]
    metrics: dict[str, float]
    settings: dict[str, Any]


class RunList(BaseModel):
    runs: list[RunAnswer]


class StepAnswer(BaseModel):
    model_config = _example(STEP)
    step: int
    weight_version: int
    metrics: dict[str, float]


class StepList(BaseModel):
    steps: list[StepAnswer]


class SampleAnswer(BaseModel):
    model_config = _example(SAMPLE)
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
    """(version, how many tokens it sampled), in the order of the tokens."""
    prompt_tokens: int
    response_tokens: int
    worker: str


class SampleList(BaseModel):
    samples: list[SampleAnswer]
