"""Selections of the user's own: checked when the run starts, and each of their answers."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from services.trainer.select_groups import fifo, freshest, load_selection, priority
from shared.errors import PluginError, RunRejected
from shared.messages import GroupReady
from tests.services.trainer.recorded_groups import run_settings


def group(group_id: int, oldest: int = 0, newest: int = 0, importance: float = 0.0) -> GroupReady:
    return GroupReady(group_id, "train", "sums", 0, [4], [0.0], oldest, newest, None, importance)


GROUPS = [group(7, 1, 4, 0.5), group(3, 2, 2), group(5, 2, 3, 2.0), group(1, 0, 5, 2.0)]


def test_the_built_in_selections_keep_the_order_of_arrival_among_equals() -> None:
    assert fifo(GROUPS, 2, 5) == [7, 3]
    assert freshest(GROUPS, 3, 5) == [5, 3, 7]
    assert priority(GROUPS, 3, 5) == [5, 1, 7]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_selection")
    monkeypatch.setitem(sys.modules, "own_selection", module)
    return module


def test_a_function_of_the_users_own_chooses(plugin: ModuleType) -> None:
    plugin.select = lambda groups, count, weight_version: [g.group_id for g in groups][-count:]  # type: ignore[attr-defined]
    assert load_selection("own_selection:select")(GROUPS, 2, 5) == [5, 1]


def test_a_wrong_signature_is_refused_before_the_run_starts(plugin: ModuleType) -> None:
    plugin.select = lambda groups: []  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="wrong signature; write `def select"):
        load_selection("own_selection:select")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([7], "returned 1 groups; it must return 2 ids"),
        ([7, 3, 5], "returned 3 groups"),
        ([7, 7], "returned group 7 twice"),
        ([7, 8], "returned group 8, which is not among the ready ones"),
        (None, "returned None, which is no list of group ids"),
        (["7", "3"], ".* which is no list of group ids"),
    ],
)
def test_a_wrong_answer_fails_the_run_with_a_sentence(plugin: ModuleType, answer: object, reason: str) -> None:
    plugin.select = lambda groups, count, weight_version: answer  # type: ignore[attr-defined]
    with pytest.raises(RunRejected, match=f"rollout.selection own_selection:select {reason}"):
        load_selection("own_selection:select")(GROUPS, 2, 5)


def test_a_selection_that_raises_fails_the_run_with_what_it_raised(plugin: ModuleType) -> None:
    def select(groups: list[GroupReady], count: int, weight_version: int) -> list[int]:
        raise ZeroDivisionError("no groups")

    plugin.select = select  # type: ignore[attr-defined]
    with pytest.raises(RunRejected, match="raised ZeroDivisionError"):
        load_selection("own_selection:select")(GROUPS, 2, 5)


def test_a_selection_goes_with_no_order_of_release(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"selection is 'freshest', but staleness_policy"):
        run_settings(tmp_path, rollout={"staleness_policy": "wait", "selection": "freshest"})
