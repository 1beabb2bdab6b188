"""Learning rates at the steps where a schedule bends."""

import pytest

from services.trainer.schedule import learning_rate


def test_warm_up_rises_in_equal_steps_and_constant_stays() -> None:
    rates = [learning_rate(step, 10, 1.0, 4, "constant", 0.0) for step in range(1, 11)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_decay_starts_at_the_peak_and_ends_at_its_share_at_the_last_step(shape: str) -> None:
    rates = [learning_rate(step, 12, 2.0, 2, shape, 0.1) for step in range(1, 13)]  # pyright: ignore[reportArgumentType]
    assert rates[1] == 2.0
    assert rates[6] == pytest.approx(2.0 * 0.55)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[1:] == sorted(rates[1:], reverse=True)
