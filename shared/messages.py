"""The messages that services exchange, and their msgpack encoding: arrays as little-endian bytes, limits on decode."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar, cast

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from shared.errors import WireError

MAX_ENTRY_BYTES = 32 * 2**20
"""The largest entry that any stream takes; larger payloads belong in a blob store."""

M = TypeVar("M")


def _array_reader(dtype: str) -> PlainValidator:
    def read(value: object) -> NDArray[Any]:
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, bytes) or len(value) % 4:
            raise ValueError("an array is bytes, 4 for each number")
        return np.frombuffer(value, dtype=dtype)

    return PlainValidator(read)


def _array_bytes(array: NDArray[Any]) -> bytes:
    return array.tobytes()


Int32Array = Annotated[NDArray[np.int32], _array_reader("<i4"), PlainSerializer(_array_bytes)]
Float32Array = Annotated[NDArray[np.float32], _array_reader("<f4"), PlainSerializer(_array_bytes)]
Spans = list[tuple[int, int]]
"""Run-length code: `[(value, count), ...]`; the counts add up to the number of tokens."""

Kind = Literal["train", "eval", "sft", "dpo"]
TRAINED_KIND: dict[str, Kind] = {"rl": "train", "sft": "sft", "dpo": "dpo"}
"""Kind of a run -> kind of the groups that it trains."""
Preference = Literal["chosen", "rejected"]
PREFERENCES: tuple[Preference, Preference] = ("chosen", "rejected")
"""By the number of the attempt in its pair."""
"""Which of the two answers of a pair."""
Turns = list[dict[str, Any]]
"""Chat messages, `{"role": ..., "content": ...}` each."""
MUTE = "step_loss_mask"
"""Field of a message of the assistant: 0 makes it context that is not trained."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One group to generate: `group_size` attempts of one dataset row."""

    group_id: int
    kind: Kind
    dataset: str
    row: int
    prompt: str | Turns
    group_size: int
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])
    pinned_version: int | None = None
    """The weight version that must generate every token (evaluation); None takes whatever the engines serve."""
    chosen: str | Turns | None = None
    """dpo: the better answer, as text or as the messages that come after the prompt; None for other kinds."""
    rejected: str | Turns | None = None
    """dpo: the worse answer, likewise."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One finished attempt of a group, without the ids and log-probabilities of its tokens: what scoring reads."""

    group_id: int
    attempt: int
    group_size: int
    kind: Kind
    dataset: str
    row: int
    prompt: str | Turns
    label: Any
    metadata: dict[str, Any]
    prompt_ids: Int32Array
    loss_mask: Spans
    """1 for tokens that the policy sampled, or is to learn from a row; 0 for those of a tool, a template or a user."""
    weight_versions: Spans
    """The weight version that sampled each token."""
    finish_reason: str
    text: str
    worker: str
    seconds: float
    pinned_version: int | None = None
    preference: Preference | None = None
    """Which answer of its pair this is; None but for kind dpo."""
    reward: float | None = None
    reward_detail: dict[str, Any] = field(default_factory=dict[str, Any])
    teacher_logprobs: Float32Array | None = None
    """Of each token after the prompt under a served teacher, natural logarithms at temperature 1, 0 where the mask is
    0; None where none was asked. The reward service adds it with the score."""

    @property
    def tokens(self) -> int:
        """How many tokens follow the prompt."""
        return sum(count for _, count in self.loss_mask)


@dataclass(frozen=True, slots=True)
class Rollout(Attempt):
    """One finished attempt, complete. Every array has one number for each token after the prompt."""

    token_ids: Int32Array = field(kw_only=True)
    logprobs: Float32Array = field(kw_only=True)
    """Natural logarithms, of the policy that sampled the token, at the sampling temperature; 0 where the mask is 0."""


class Asked(TypedDict):
    """What an attempt says of the prompt that it answers."""

    group_id: int
    group_size: int
    kind: Kind
    dataset: str
    row: int
    prompt: str | Turns
    label: Any
    metadata: dict[str, Any]
    pinned_version: int | None


def asked(prompt: Prompt) -> Asked:
    """The fields that an attempt takes over from its prompt: `Rollout(**asked(prompt), attempt=0, ...)`."""
    return Asked(
        group_id=prompt.group_id,
        group_size=prompt.group_size,
        kind=prompt.kind,
        dataset=prompt.dataset,
        row=prompt.row,
        prompt=prompt.prompt,
        label=prompt.label,
        metadata=prompt.metadata,
        pinned_version=prompt.pinned_version,
    )


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """The next tokens of one unfinished attempt, all sampled by the policy or all added by the generate function."""

    attempt: int
    at: int
    """How many tokens of the attempt, after the prompt, come before this chunk."""
    token_ids: Int32Array
    logprobs: Float32Array
    weight_versions: Spans
    sampled: bool
    finish_reason: str = ""
    """stop or length where a reply of the policy ends with this chunk; empty within a reply."""


@dataclass(frozen=True, slots=True)
class GroupReady:
    """A complete, scored, kept group. The payload stays in the group's hash; planning needs only what is here."""

    group_id: int
    kind: Kind
    dataset: str
    row: int
    lengths: list[int]
    """Prompt and response tokens together, by attempt."""
    rewards: list[float]
    oldest_version: int
    newest_version: int
    pinned_version: int | None = None
    priority: float = 0.0
    """`priority` of the row's metadata, for the selection of that name."""


@dataclass(frozen=True, slots=True)
class StepIntent:
    """Written before an optimizer step: exactly what the step will train."""

    step: int
    group_ids: list[int]
    weight_version: int
    """The version of the weights that the step starts from."""
    seed: int
    lengths: list[list[int]] = field(default_factory=list[list[int]])
    """Tokens of each attempt, by group in the order of `group_ids`: what ranks share the step by."""
    type: Literal["intent"] = "intent"

    @property
    def is_rollback(self) -> bool:
        """It trains nothing: the state after it is that of `weight_version`, which may be any older one."""
        return not self.group_ids


@dataclass(frozen=True, slots=True)
class StepCommit:
    """Written after an optimizer step."""

    step: int
    weight_version: int
    """The version that the step produced."""
    metrics: dict[str, float]
    type: Literal["commit"] = "commit"


StepRecord = StepIntent | StepCommit


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a bucket, in Hugging Face names."""

    name: str
    dtype: str
    shape: list[int]


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where engines meet the trainer for one version; all times are seconds since the epoch."""

    host: str
    """ipc: the id of the trainer's machine."""
    port: int
    group_name: str
    backend: str
    """Of the process group: gloo or nccl; files or ipc where there is none, and no port either."""
    enrol_until: float
    done_until: float


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """A version as files. Its manifest holds the rest, and is bound to this by its hash."""

    store: str
    """Folder of all versions of the run: a path, or a URL that fsspec knows."""
    folder: str
    """Name of this version's folder there."""
    kind: Literal["full", "delta"]
    manifest: str
    """Hash of its manifest."""
    base_version: int | None = None
    """delta: the version that it changes."""
    base_checksum: str = ""
    """delta: the checksum of that one."""


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """A version of the weights: what it holds, how to check it and where to get it."""

    version: int
    step: int
    buckets: list[list[TensorSpec]]
    """Each bucket is broadcast as one flat tensor, its tensors in this order."""
    checksum: str
    """SHA-256 over `tensor_checksums`: names and hashes, in order."""
    tensor_checksums: dict[str, str]
    """The hash that SGLang's weight checker computes of each parameter, by the engine's names."""
    rendezvous: Rendezvous
    engine_device: str = "cpu"
    """cpu or cuda: where the engines are whose checker computes those hashes; elsewhere it takes other ones."""
    files: WeightFiles | None = None
    """None: the buckets are broadcast."""


@dataclass(frozen=True, slots=True)
class MemoryTurn:
    """Whose the memory of the shared device is from now on, in a run whose trainer and engines take turns with it."""

    turn: str
    """Names it; no two turns of a run have the same name."""
    holder: Literal["trainer", "engines"]
    since: float
    """Seconds since the epoch."""
    until: float
    """trainer: when engines have to have given their memory away."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run, a group or a service."""

    time: float
    service: str
    event: str
    detail: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that was given up: where it came from, its bytes, why, and after how many deliveries."""

    stream: str
    entry: bytes
    error: str
    deliveries: int
    time: float
    group_id: int | None = None
    evaluation: bool = False
    """The group is one of an evaluation, whose version the engines may not serve any more."""


@cache
def _adapter(message: Any) -> TypeAdapter[Any]:
    return TypeAdapter(message)  # 2 ms each, and codecs are made wherever one is needed


class Codec(Generic[M]):
    """A message type <-> msgpack bytes."""

    def __init__(self, message: Any) -> None:
        name: str = getattr(message, "__name__", "StepRecord")
        self._named = f"an {name}" if name[0] in "AEIOU" else f"a {name}"
        self._adapter: TypeAdapter[M] = _adapter(message)

    def encode(self, message: M) -> bytes:
        """WireError if the message is larger than the entry limit."""
        data = cast(bytes, msgpack.packb(self._adapter.dump_python(message), use_bin_type=True))
        self._check_size(data)
        return data

    def decode(self, data: bytes, **beside: Any) -> M:
        """WireError if the bytes are no msgpack, are over a limit, or do not make this message.

        `beside` are fields that travel on their own.
        """
        self._check_size(data)
        try:
            tree: Any = msgpack.unpackb(data)
            fields = {**cast(dict[Any, Any], tree), **beside} if isinstance(tree, dict) else tree
            return self._adapter.validate_python(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise WireError(f"not {self._named}: {where}: {first['msg']}") from None
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise WireError(f"not {self._named}: {type(error).__name__}: {error}") from None

    def _check_size(self, data: bytes) -> None:
        if len(data) > MAX_ENTRY_BYTES:
            raise WireError(f"{self._named} of {len(data)} bytes is over the limit of {MAX_ENTRY_BYTES} bytes an entry")


def spans(values: Iterable[int]) -> Spans:
    """Run-length encode: `[3, 3, 4]` -> `[(3, 2), (4, 1)]`."""
    return [(value, sum(1 for _ in run)) for value, run in groupby(values)]


def expand(encoded: Spans) -> NDArray[np.int32]:
    """Run-length decode: `[(3, 2), (4, 1)]` -> `[3, 3, 4]`."""
    values, counts = zip(*encoded, strict=True) if encoded else ((), ())
    return np.repeat(np.asarray(values, np.int32), counts)
