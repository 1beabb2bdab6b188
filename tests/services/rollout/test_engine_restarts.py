"""An engine that dies is started again, later each time, until it died too often."""

import pytest

from services.rollout.engine_restarts import MOST, START_TRIES, WINDOW_S, EngineLost, Restarts
from shared.errors import RunRejected


def test_every_restart_waits_twice_as_long_and_the_last_one_is_refused() -> None:
    restarts = Restarts(clock=lambda: 0.0)
    assert [restarts.next_delay_s("x") for _ in range(MOST)] == [0.5, 1, 2, 4, 8]
    with pytest.raises(EngineLost, match="died 6 times within 10 minutes; last: out of memory"):
        restarts.next_delay_s("out of memory")


def test_an_engine_that_had_come_to_serve_is_started_again_for_ever() -> None:
    restarts = Restarts(clock=lambda: 0.0)
    assert [restarts.next_delay_s("killed", served=True) for _ in range(3 * MOST)] == [0.5] * 3 * MOST


def test_deaths_long_ago_are_forgotten() -> None:
    now = 0.0
    restarts = Restarts(clock=lambda: now)
    for _ in range(3 * MOST):
        assert restarts.next_delay_s("x") == 0.5
        now += WINDOW_S + 1


def test_a_run_that_starts_is_rejected_after_its_third_failed_start_however_long_they_took() -> None:
    now = 0.0
    restarts = Restarts(starting=True, clock=lambda: now)
    for _ in range(START_TRIES - 1):
        restarts.next_delay_s("x")
        now += WINDOW_S + 1
    with pytest.raises(RunRejected, match="no such backend"):
        restarts.next_delay_s("no such backend")


def test_a_run_whose_engine_served_once_is_not_rejected_for_what_comes_later() -> None:
    restarts = Restarts(starting=True, clock=lambda: 0.0)
    assert [restarts.next_delay_s("x"), restarts.next_delay_s("killed", served=True)] == [0.5, 0.5]
    with pytest.raises(EngineLost):
        for _ in range(MOST):
            restarts.next_delay_s("x")
