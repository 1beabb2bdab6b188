"""An engine that dies is started again, later each time, until it died too often."""

import pytest

from services.rollout.engine_restarts import MOST, WINDOW_S, EngineLost, Restarts


def test_every_restart_waits_twice_as_long_and_the_last_one_is_refused() -> None:
    restarts = Restarts(lambda: 0.0)
    assert [restarts.next_delay_s("x") for _ in range(MOST)] == [0.5, 1, 2, 4, 8]
    with pytest.raises(EngineLost, match="died 6 times within 10 minutes; last: out of memory"):
        restarts.next_delay_s("out of memory")


def test_an_engine_that_had_come_to_serve_is_started_again_for_ever() -> None:
    restarts = Restarts(lambda: 0.0)
    assert [restarts.next_delay_s("killed", served=True) for _ in range(3 * MOST)] == [0.5] * 3 * MOST


def test_deaths_long_ago_are_forgotten() -> None:
    now = 0.0
    restarts = Restarts(lambda: now)
    for _ in range(3 * MOST):
        assert restarts.next_delay_s("x") == 0.5
        now += WINDOW_S + 1
