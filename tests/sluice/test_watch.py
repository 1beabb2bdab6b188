"""Watching goes on while what it asks is away, and ends for what will not pass."""

import re

import pytest
from rich.console import Console
from rich.live import Live

from shared.rest_examples import EVALUATION, RUN
from sluice.answers import Evaluation, Run, Step
from sluice.cli import watch
from sluice.client import GatewayError, GatewayUnreachable


@pytest.mark.parametrize("away", [GatewayUnreachable("no gateway"), GatewayError("Redis does not answer", 503, [])])
def test_an_answer_is_waited_for_while_gateway_or_redis_is_away(
    away: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.0)
    answers = iter([away, away, "here"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert watch.patiently(ask) == "here"


def test_a_preference_run_shows_accuracy_and_margin_and_no_empty_columns() -> None:
    metrics = {"loss": 0.5, "preference_accuracy": 0.9, "preference_margin": 1.5, "seconds_total": 2.0}
    shown = watch.row(Step(step=3, weight_version=3, metrics=metrics), None)
    assert watch.filled([shown, shown]) == (
        ["step", "loss", "accuracy", "margin", "version", "seconds"],
        [[3, 0.5, 0.9, 1.5, 3, 2.0]] * 2,
    )


def test_a_step_that_went_back_names_the_version_also_where_most_steps_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run.model_validate({**RUN, "step": 7, "steps": 1000, "state": "running"})
    back = Step(step=7, weight_version=7, metrics={"rolled_back_to": 4.0, "seconds_total": 0.5})
    watch.Lines().update(run, [Step(step=6, weight_version=6, metrics={"loss": 1.0}), back], [])
    assert capsys.readouterr().out.splitlines() == ["step 7/1000  version 7  back to 4  seconds 0.5"]


def evaluated(done: int, dropped: int = 0) -> Run:
    """A run of 0 steps over two datasets of 4 rows, the first of which is answered."""
    held = Evaluation.model_validate({**EVALUATION, "version": 0, "groups": 4, "done": 4, "reward_mean": 0.75})
    other = {"dataset": "other", "done": done, "dropped": dropped, "complete": done == 4, "reward_mean": 0.5}
    both = [held, held.model_copy(update=other)]
    return Run.model_validate({**RUN, "step": 0, "steps": 0, "evaluations": both, "state": "running"})


def test_a_run_without_steps_shows_how_far_its_evaluation_is(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = Console(width=100)
    with Live(console=drawn, auto_refresh=False) as live:
        watch.LiveTable(live).update(evaluated(done=1), [], evaluated(done=1).evaluations[:1])
        live.refresh()
    shown = capsys.readouterr().out
    assert "5/8" in shown
    assert re.search(r"sums-held-out +4/4 +0 +0.75", shown)
    assert re.search(r"other +1/4 +0 +0.5", shown)
    assert "step" not in shown


def test_rows_that_were_dropped_are_told_with_the_mean_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated(done=4, dropped=3)
    watch.Lines().update(run, [], run.evaluations)
    assert capsys.readouterr().out.splitlines() == [
        "evaluation of version 0 on sums-held-out: 0.7500",
        "evaluation of version 0 on other: 0.5000; 3 of 4 rows dropped",
    ]


def test_a_refusal_is_not_repeated() -> None:
    def ask() -> str:
        raise GatewayError("there is no run x", 404, [])

    with pytest.raises(GatewayError, match="no run x"):
        watch.patiently(ask)
