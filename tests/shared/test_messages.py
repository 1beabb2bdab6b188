"""Messages and their msgpack encoding: exact arrays, few bytes, refused nonsense."""

import dataclasses

import msgpack
import numpy as np
import pytest

from shared import messages
from shared.errors import WireError
from shared.messages import Codec, GroupReady, Rollout, StepCommit, StepIntent, StepRecord, expand, spans


def rollout(tokens: int) -> Rollout:
    ids = np.arange(tokens, dtype=np.int32) * 37 - 5
    return Rollout(
        group_id=2**40,
        attempt=3,
        group_size=8,
        kind="train",
        dataset="sums",
        row=9,
        prompt=[{"role": "user", "content": "1+1="}],
        label={"answer": [2, None]},
        metadata={"level": 1.5},
        prompt_ids=np.array([1, 2], np.int32),
        token_ids=ids,
        logprobs=-np.linspace(0, 9, tokens, dtype=np.float32),
        loss_mask=[(1, tokens)],
        weight_versions=[(0, 1), (1, tokens - 1)],
        finish_reason="stop",
        text="2",
        worker="w",
        seconds=0.25,
        reward=1.0,
        teacher_logprobs=-np.linspace(0, 11, tokens, dtype=np.float32),
    )


def test_a_rollout_survives_the_wire_bit_for_bit() -> None:
    codec: Codec[Rollout] = Codec(Rollout)
    sent = rollout(1000)
    received = codec.decode(codec.encode(sent))
    for field in dataclasses.fields(Rollout):
        before, after = getattr(sent, field.name), getattr(received, field.name)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype
            assert after.tobytes() == before.tobytes()
        else:
            assert after == before, field.name


def test_a_long_rollout_takes_at_most_nine_bytes_a_token_beside_its_text_and_four_more_with_a_teacher() -> None:
    codec: Codec[Rollout] = Codec(Rollout)
    judged = rollout(4096)
    assert len(codec.encode(dataclasses.replace(judged, teacher_logprobs=None))) <= 9 * 4096
    assert len(codec.encode(judged)) <= 13 * 4096


def test_a_step_record_decodes_to_the_kind_that_was_sent() -> None:
    codec: Codec[StepRecord] = Codec(StepRecord)
    intent, commit = StepIntent(1, [3, 4], 0, 7), StepCommit(1, 1, {"loss": 0.5})
    assert codec.decode(codec.encode(intent)) == intent
    assert codec.decode(codec.encode(commit)) == commit


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a Rollout"),
        (b"\xc1", "not a Rollout"),
        (msgpack.packb([1, 2]), "not a Rollout"),
        (msgpack.packb({"group_id": 1}), "attempt: Field required"),
        (msgpack.packb({1: 2}), "not a Rollout"),
    ],
)
def test_what_is_no_rollout_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        Codec(Rollout).decode(data)


def test_an_array_of_broken_bytes_is_refused() -> None:
    codec: Codec[Rollout] = Codec(Rollout)
    tree = msgpack.unpackb(codec.encode(rollout(2)))
    with pytest.raises(WireError, match="token_ids"):
        codec.decode(msgpack.packb({**tree, "token_ids": b"abc"}))
    with pytest.raises(WireError, match="token_ids"):
        codec.decode(msgpack.packb({**tree, "token_ids": [1, 2]}))


def test_an_entry_over_the_limit_is_refused_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    codec: Codec[GroupReady] = Codec(GroupReady)
    data = codec.encode(GroupReady(1, "train", "sums", 0, [1] * 100, [0.0] * 100, 0, 0))
    monkeypatch.setattr(messages, "MAX_ENTRY_BYTES", len(data) - 1)
    with pytest.raises(WireError, match="over the limit"):
        codec.decode(data)
    with pytest.raises(WireError, match="over the limit"):
        codec.encode(GroupReady(1, "train", "sums", 0, [1] * 100, [0.0] * 100, 0, 0))


def test_spans_and_expand_are_each_others_inverse() -> None:
    values = [0, 0, 1, 1, 1, 0, 5]
    assert spans(values) == [(0, 2), (1, 3), (0, 1), (5, 1)]
    assert expand(spans(values)).tolist() == values
    assert expand([]).tolist() == []
