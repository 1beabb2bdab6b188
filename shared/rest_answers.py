"""The JSON objects of the REST API: what the gateway answers is what its client returns, with an example each."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from shared.rest_examples import DATASET, EVALUATION, RUN, SAMPLE, STEP
from shared.runs import ENDED, State


class Answer(BaseModel):
    """One object; fields that a newer gateway adds are kept aside by an older client."""

    model_config = ConfigDict(extra="allow", frozen=True)


def example(value: dict[str, Any]) -> ConfigDict:
    """The configuration of an answer that is shown with an example."""
    return ConfigDict(extra="allow", frozen=True, json_schema_extra={"examples": [value]})


class ErrorBody(Answer):
    message: str
    """What was given, what is allowed, what to send instead."""
    details: list[Any]


class ErrorAnswer(Answer):
    """Every answer with a status of 400 or more."""

    model_config = example({"error": {"message": "there is no run 'sum'; did you mean sums?", "details": []}})
    error: ErrorBody


class Health(Answer):
    status: str


class Dataset(Answer):
    """A stored dataset."""

    model_config = example(DATASET)
    name: str
    rows: int
    bytes: int
    """Size of the upload."""
    sha256: str
    """Of the upload."""
    format: str
    created: float
    labels: bool
    """Every row has a label."""
    text_labels: bool
    """Every row has a label that is text and not empty."""
    demonstrations: bool = False
    """Every row shows an answer, which an sft run trains: such a label, or messages that end with the assistant's."""
    pairs: bool = False
    """Every row has a chosen and a rejected answer, which a dpo run trains."""


class DatasetList(Answer):
    datasets: list[Dataset]


class DatasetRow(Answer):
    row: int
    prompt: str | list[dict[str, Any]]
    label: Any
    metadata: dict[str, Any]
    chosen: str | list[dict[str, Any]] | None = None
    """The better answer of a preference row: text, or the messages that come after the prompt."""
    rejected: str | list[dict[str, Any]] | None = None


class RowList(Answer):
    rows: list[DatasetRow]


class Evaluation(Answer):
    """The evaluation of one dataset by one weight version, so far."""

    model_config = example(EVALUATION)
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

    model_config = example(RUN)
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
    evaluations: list[Evaluation]
    metrics: dict[str, float]
    settings: dict[str, Any]
    held_back: str = ""
    """Why no further groups are released now, and what to do about it; empty while nothing holds them back."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class RunList(Answer):
    runs: list[Run]


class Step(Answer):
    """One committed optimizer step."""

    model_config = example(STEP)
    step: int
    weight_version: int
    metrics: dict[str, float]


class StepList(Answer):
    steps: list[Step]


class Sample(Answer):
    """One scored attempt."""

    model_config = example(SAMPLE)
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
    preference: str | None = None
    """In a run of kind dpo: chosen or rejected."""


class SampleList(Answer):
    samples: list[Sample]


class StreamEvent(Answer):
    """One server-sent event of a run."""

    event: str
    id: str
    data: Any
