"""A heap that was settled: what it holds is collected when it is cleared, and not before."""

import gc
import weakref

from services.trainer.settled_heap import clear_heap, settle_heap


class Model:
    """Holds itself, as modules with hooks do."""

    def __init__(self) -> None:
        self.own = self


def test_what_was_there_when_the_heap_was_settled_goes_when_it_is_cleared_and_not_before() -> None:
    model = Model()
    seen = weakref.ref(model)
    try:
        settle_heap()
        del model
        gc.collect()
        assert seen() is not None
    finally:
        clear_heap()
    assert seen() is None
    assert gc.get_freeze_count() == 0


def test_settling_anew_collects_what_a_model_before_has_left() -> None:
    settle_heap()
    model = Model()
    seen = weakref.ref(model)
    settle_heap()
    del model
    try:
        settle_heap()
        assert seen() is None
    finally:
        clear_heap()
