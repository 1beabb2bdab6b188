"""Which groups are trained."""

from pathlib import Path

import pytest

from services.reward.group_filter import build_filter
from shared.errors import PluginError
from shared.messages import Rollout
from tests.services.reward.reward_cases import rollout


def group(*rewards: float) -> list[Rollout]:
    return [rollout(0, number, reward=reward) for number, reward in enumerate(rewards)]


def test_without_a_filter_every_group_is_kept() -> None:
    assert build_filter("")(group(1.0, 1.0)) is None
    assert build_filter("keep_all")(group(1.0, 1.0)) is None


def test_nonzero_std_drops_groups_whose_rewards_are_equal() -> None:
    keep = build_filter("nonzero_std")
    assert keep(group(0.3, 0.3, 0.3 + 1e-9)) == "zero_std"
    assert keep(group(0.0, 1.0)) is None


def test_nonzero_std_keeps_a_group_of_one_attempt() -> None:
    assert build_filter("nonzero_std")(group(1.0)) is None


def test_a_plugin_says_yes_or_no_or_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def keep(rollouts):\n    return [True, False, 'too long', '', None][int(rollouts[0].reward)]\n"
    (tmp_path / "my_filter.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    keep = build_filter("my_filter:keep")
    assert [keep(group(answer)) for answer in range(4)] == [None, "filtered", "too long", "filtered"]
    with pytest.raises(PluginError, match="returned a NoneType; return True to keep"):
        keep(group(4.0))


def test_a_misspelt_filter_is_refused_with_what_can_be_written() -> None:
    with pytest.raises(PluginError, match="write keep_all, nonzero_std or module:function"):
        build_filter("non_zero_std")


def test_an_async_filter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_async_filter.py").write_text("async def keep(rollouts):\n    return True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="must not be an async function"):
        build_filter("my_async_filter:keep")
