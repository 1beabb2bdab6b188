"""What the trainer is told of a group."""

from services.reward.group_ready import describe, is_off_version
from tests.services.reward.reward_cases import rollout


def test_versions_are_those_that_sampled_a_token() -> None:
    one = rollout(0, 0, reward=1.0, weight_versions=[(2, 0), (3, 1), (5, 1)])
    assert (describe([one]).oldest_version, describe([one]).newest_version) == (3, 5)


def test_a_group_without_tokens_has_the_version_that_was_asked_for() -> None:
    one = rollout(0, 0, reward=1.0, weight_versions=[], pinned_version=6)
    assert (describe([one]).oldest_version, is_off_version([one])) == (6, False)


def test_one_token_of_another_version_makes_an_evaluation_group_off_version() -> None:
    exact = rollout(0, 0, reward=1.0, pinned_version=4)
    mixed = rollout(0, 1, reward=1.0, pinned_version=4, weight_versions=[(4, 1), (5, 1)])
    assert [is_off_version([exact]), is_off_version([exact, mixed])] == [False, True]
