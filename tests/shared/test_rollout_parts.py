"""An attempt and its arrays, apart in Redis and together in an archive, with what a teacher says of the tokens."""

from dataclasses import replace

import numpy as np
import pytest

from shared.errors import WireError
from shared.messages import Attempt, Codec, Rollout
from shared.rollout_parts import arrays_of, encoded_whole, join_parts
from tests.shared.test_messages import rollout


def parts(one: Rollout) -> tuple[bytes, bytes]:
    return Codec[Attempt](Attempt).encode(one), arrays_of(one)


@pytest.mark.parametrize("judged", [True, False], ids=["judged", "not judged"])
def test_a_rollout_comes_back_from_its_parts_and_from_an_archive(judged: bool) -> None:
    one = rollout(7) if judged else replace(rollout(7), teacher_logprobs=None)
    for found in (join_parts(*parts(one)), Codec[Rollout](Rollout).decode(encoded_whole(*parts(one)))):
        assert Codec(Rollout).encode(found) == Codec(Rollout).encode(one)
        assert (found.teacher_logprobs is not None) == judged


def test_a_teacher_that_judged_other_tokens_makes_no_rollout() -> None:
    attempt, arrays = parts(replace(rollout(7), teacher_logprobs=np.zeros(6, np.float32)))
    with pytest.raises(WireError, match="it has 6 log-probabilities of the teacher, and a loss mask of 7"):
        join_parts(attempt, arrays)
