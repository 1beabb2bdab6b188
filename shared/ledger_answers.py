"""The JSON objects of a run's ledger, of a group's lineage and of dead letters, with an example each."""

from typing import Any, Literal

from shared.ledger_examples import DEAD_LETTER, LEDGER, LINEAGE
from shared.rest_answers import Answer, example

Place = Literal["prompts", "rollouts", "joining", "ready", "intended"]
"""Where a group is that is not decided: waiting for or in generation, generated, partly scored, complete, in a step."""
GroupState = Literal[
    "prompts", "rollouts", "joining", "ready", "intended", "trained", "evaluated", "dropped", "dead", "lost"
]


class GroupLedger(Answer):
    """Every group that was released is in exactly one of these."""

    released: int
    evaluations: int
    """How many of the released ones are evaluation groups."""
    trained: int
    evaluated: int
    dropped: dict[str, int]
    """By reason; dead ones apart."""
    dead: int
    """Dropped because an entry was given up; `sluice dead` lists those whose entries are kept."""
    pending: dict[Place, int]
    """`intended`: recorded for a step that is not committed yet."""
    lost: int
    """In no place at all."""
    twice: int
    """In two states that exclude each other."""


class TokenLedger(Answer):
    """Tokens after the prompt: generated = trained + evaluated + dropped:<reason> + undecided, in each row."""

    total: dict[str, int]
    dataset: dict[str, dict[str, int]]
    """Dataset -> state -> tokens."""
    worker: dict[str, dict[str, int]]
    version: dict[str, dict[str, int]]
    """Weight version that sampled them -> state -> tokens."""


class LedgerAnswer(Answer):
    """What became of every group and token of a run, at one moment."""

    model_config = example(LEDGER)
    run: str
    state: str
    time: float
    step: int
    """Steps that are committed."""
    intended: int
    """Steps whose groups are recorded."""
    groups: GroupLedger
    tokens: TokenLedger
    verified: bool
    """The proofs were made; without them `problems` names only groups that are lost or twice."""
    balanced: bool
    problems: list[str]
    lost: list[int]
    """Ids of lost groups, the first hundred."""
    twice: list[int]
    checks: list[str]
    """What was proven, and how much of it was looked at."""


class LineageAttempt(Answer):
    """One attempt of a group."""

    attempt: int
    worker: str
    weight_versions: list[tuple[int, int]]
    """(version, how many tokens it sampled), in the order of the tokens."""
    prompt_tokens: int
    response_tokens: int
    finish_reason: str
    seconds: float
    reward: float | None
    reward_detail: dict[str, Any]
    text: str
    preference: str | None = None
    """In a run of kind dpo: chosen or rejected."""


class LineageEvent(Answer):
    time: float
    service: str
    event: str
    detail: dict[str, Any]


class Lineage(Answer):
    """What is known of one group, from its prompt to the weights that it trained."""

    model_config = example(LINEAGE)
    run: str
    group_id: int
    state: GroupState
    dropped_because: str
    """Reason of the drop; empty for a group that was not dropped."""
    kind: str | None
    dataset: str | None
    row: int | None
    prompt: str | list[dict[str, Any]] | None
    label: Any
    group_size: int | None
    attempts: list[LineageAttempt]
    source: Literal["redis", "archive", "none"]
    """Where prompt and attempts come from."""
    note: str
    """What is missing, and why; empty if nothing is."""
    events: list[LineageEvent]
    step: int | None
    """The step that trains the group."""
    step_committed: bool
    weight_version: int | None
    """The version that this step makes."""
    checksum: str | None
    """Of that version; null if it was not offered to engines."""
    sampled_by: dict[int, str]
    """Versions that sampled a token of the group -> their checksums."""


class DeadLetterAnswer(Answer):
    """One entry that was given up."""

    model_config = example(DEAD_LETTER)
    id: str
    stream: str
    group_id: int | None
    error: str
    deliveries: int
    time: float
    bytes: int
    """Size of the entry."""
    redrivable: bool
    why_not: str
    """Why it cannot be sent again; empty if it can."""


class DeadLetterList(Answer):
    letters: list[DeadLetterAnswer]
    total: int
    """How many there are."""


class DeadEntry(DeadLetterAnswer):
    """The letter, and what was in the entry."""

    entry: dict[str, Any] | None
    """The message, if it decodes; arrays are told by their length."""
    hex: str
    """The first bytes of an entry that does not decode."""
    decode_error: str


class Redriven(Answer):
    groups: list[int]
    """Groups that were sent again."""
    refused: dict[str, str]
    """Group or letter -> why it was not."""


class Discarded(Answer):
    letters: int
    """How many dead letters were deleted."""
