"""Parents of steps where a run went back, now and then, also to what it had left behind."""

import random

import pytest

from shared.lineage import Lineage, available, in_words, spans

BACK = Lineage({13: 8, 16: 12})
"""Steps 9 to 12 were left at 13, which is step 8 again; 13 to 15 at 16, which is step 12 again."""


def ancestors(lineage: Lineage, step: int) -> set[int]:
    """Step by step, and so surely right."""
    found = {step}
    while step > 0:
        step = lineage.parent(step)
        found.add(step)
    return found


def test_without_a_rollback_every_step_comes_from_all_before_it() -> None:
    plain = Lineage()
    assert [list(span) for span in plain.spans(3)] == [[0, 1, 2, 3]]
    assert (plain.parent(3), plain.includes(3, 0), plain.includes(3, 4), plain.left_at(3, 1)) == (2, True, False, None)


def test_what_a_rollback_went_back_behind_is_left() -> None:
    assert [BACK.left_at(15, step) for step in (8, 9, 12, 13, 15)] == [None, 13, 13, None, None]
    assert [BACK.left_at(17, step) for step in (8, 9, 12, 13, 15, 16)] == [None, None, None, 16, 16, None]
    again = Lineage({4: 1, 9: 0})
    assert [again.left_at(10, step) for step in range(1, 10)] == [9, 4, 4, 9, 9, 9, 9, 9, None]
    assert [BACK.includes(15, step) for step in (8, 9, 13)] == [True, False, True]
    assert [(span.start, span.stop) for span in BACK.spans(17)] == [(16, 18), (0, 13)]


@pytest.mark.parametrize("seed", range(20))
def test_the_ancestors_of_a_step_are_those_that_one_walks_back_through(seed: int) -> None:
    choose = random.Random(seed)
    steps = choose.sample(range(2, 40), 6)
    lineage = Lineage({step: choose.randrange(step - 1) for step in steps})
    for step in range(41):
        expected = ancestors(lineage, step)
        assert {one for one in range(41) if lineage.includes(step, one)} == expected
        assert {one for one in range(step + 1) if lineage.left_at(step, one) is None} == expected


def test_a_version_can_be_had_where_a_state_is_kept_or_all_after_one() -> None:
    def can(states: set[int], groups: set[int]) -> str:
        return in_words(available(BACK, 0, 17, states, groups.__contains__))

    assert can({0}, set()) == "0"
    assert can({0, 6, 12}, set(range(7, 18))) == "0, 6 to 17"
    assert can({0, 6}, {7, 8, 14, 15}) == "0, 6 to 8, 13 to 15"  # 13 is step 8 again; 16 is step 12, which is gone
    assert can({12}, {17}) == "12, 16 to 17"
    assert can(set(), set(range(18))) == "none"
    assert spans([8, 0, 7, 6]) == [(0, 0), (6, 8)]
