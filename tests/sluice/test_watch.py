"""Watching goes on while what it asks is away, and ends for what will not pass."""

import pytest

from sluice.answers import Step
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


def test_a_refusal_is_not_repeated() -> None:
    def ask() -> str:
        raise GatewayError("there is no run x", 404, [])

    with pytest.raises(GatewayError, match="no run x"):
        watch.patiently(ask)
