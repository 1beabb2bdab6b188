"""Seconds of phases: each belongs to one, and to one step."""

from services.trainer.step_clock import StepClock


def test_the_seconds_of_all_steps_add_up_to_the_time_that_passed() -> None:
    times = iter([10.0, 11.0, 13.0, 13.5, 14.0, 18.0, 18.25, 20.0, 21.0, 21.5, 25.5])
    clock = StepClock(lambda: next(times))
    for phase in ("publish", "wait", "fetch", "train"):
        clock.lap(phase)
    first = clock.take()
    for phase in ("publish", "checkpoint", "wait", "fetch", "train", "train"):
        clock.lap(phase)
    second = clock.take()
    assert first == {
        "seconds_publish": 1.0, "seconds_checkpoint": 0.0, "seconds_wait": 2.0, "seconds_fetch": 0.5,
        "seconds_memory": 0.0, "seconds_train": 0.5, "seconds_total": 4.0,
    }  # fmt: skip
    assert second["seconds_checkpoint"] == 0.25
    assert first["seconds_total"] + second["seconds_total"] == 25.5 - 10.0
