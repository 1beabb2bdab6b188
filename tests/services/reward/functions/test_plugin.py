"""Rewards of users: what is taken, what is refused, and what an error says."""

import asyncio
import importlib
from pathlib import Path

import pytest

from services.reward.functions.plugin import load_reward
from services.reward.score import Reward, Score, ScoringFailed
from shared.errors import PluginError
from tests.services.reward.reward_cases import rollout


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> "object":
    """Write a plugin with this code and load its `score`."""
    monkeypatch.syspath_prepend(tmp_path)

    def from_code(code: str, deadline_s: float = 5) -> Reward:
        name = f"plugin_{abs(hash(request.node.name + code))}"
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        return load_reward(f"{name}:score", deadline_s)

    return from_code


async def test_a_plugin_scores_an_attempt(load) -> None:
    reward = load("async def score(rollout):\n    return {'score': len(rollout.text), 'by': 'me'}\n")
    assert await reward.score_rollout(rollout(0, 0, "abc")) == Score(3.0, {"by": "me"})


async def test_a_parameter_named_rollouts_takes_the_whole_group(load) -> None:
    reward = load("async def score(rollouts):\n    return [one.attempt for one in rollouts]\n")
    assert reward.score is None
    assert reward.score_rollout is None
    assert await reward.score_group([rollout(0, 0), rollout(0, 1)]) == [Score(0.0), Score(1.0)]


@pytest.mark.parametrize("given", ["[1.0]", "1.0", "None"])
async def test_a_group_plugin_has_to_return_one_score_for_each_attempt(load, given: str) -> None:
    reward = load(f"async def score(rollouts):\n    return {given}\n")
    with pytest.raises(ScoringFailed, match="for 2 attempts; return a list, one each"):
        await reward.score_group([rollout(0, 0), rollout(0, 1)])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def score(rollout):\n    return 1\n", "must be an async function; write `async def score"),
        ("async def score():\n    return 1\n", "wrong signature"),
        ("async def score(rollout, label):\n    return 1\n", "wrong signature"),
        ("async def score(sample):\n    return 1\n", "to score a whole group at once"),
        ("async def score(rollout:\n", "fails when it is imported"),
        ("async def other(rollout):\n    return 1\n", "has no function score"),
    ],
)
def test_a_plugin_that_cannot_work_is_refused_before_the_run(load, code: str, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        load(code)


async def test_a_plugin_has_a_deadline(load) -> None:
    reward = load("import asyncio\nasync def score(rollout):\n    await asyncio.sleep(60)\n", deadline_s=0.05)
    with pytest.raises(ScoringFailed, match=r"longer than reward.deadline_s = 0.05 s"):
        await reward.score_rollout(rollout(0, 0))


async def test_a_plugin_that_cancels_itself_fails_and_one_that_is_ended_ends(load) -> None:
    reward = load("import asyncio\nasync def score(rollout):\n    raise asyncio.CancelledError\n")
    with pytest.raises(ScoringFailed, match="cancelled itself; let it return or raise"):
        await reward.score_rollout(rollout(0, 0))
    waits = load("import asyncio\nasync def score(rollout):\n    await asyncio.sleep(60)\n")
    task = asyncio.create_task(waits.score_rollout(rollout(0, 0)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
