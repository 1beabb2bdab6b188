"""The last bytes of a payload are all that a score changes, with and without a teacher."""

from dataclasses import replace

import numpy as np
import pytest

from services.reward import score_end
from services.reward.score import Score
from services.reward.score_end import UNSCORED, end_of
from shared.messages import Attempt, Codec
from tests.services.reward.reward_cases import rollout

SCORES = [Score(0.5), Score(-1.0, {"why": "late"}), Score(1.0, {}, np.asarray([-0.25, 0.0], np.float32))]


@pytest.mark.parametrize("score", SCORES, ids=["number", "detail", "teacher"])
def test_the_payload_with_its_new_end_is_the_encoding_of_the_scored_attempt(score: Score) -> None:
    codec, one = Codec[Attempt](Attempt), rollout(3, 1)
    payload = codec.encode(one)
    end = end_of(score, payload)
    assert end is not None
    scored = replace(one, reward=score.value, reward_detail=score.detail, teacher_logprobs=score.teacher_logprobs)
    assert payload.removesuffix(UNSCORED) + end == codec.encode(scored)


def test_a_payload_that_ends_in_another_way_or_would_be_too_large_is_encoded_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec, one = Codec[Attempt](Attempt), rollout(3, 1)
    assert end_of(SCORES[0], codec.encode(replace(one, reward=1.0))) is None
    payload, judged = codec.encode(one), SCORES[2]
    monkeypatch.setattr(score_end, "MAX_ENTRY_BYTES", len(payload))
    assert end_of(judged, payload) is None
