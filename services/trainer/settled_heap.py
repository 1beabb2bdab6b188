"""A model that was loaded -> hundreds of thousands of objects that stay, which no garbage collection looks at again.

Python collects now and then among all that it has; with torch and transformers that takes a sixth of a second, in
which no thread of the process runs, in the middle of a step.
"""

import gc


def settle_heap() -> None:
    """Leave everything that is there out of later collections, until the heap is cleared or settled anew."""
    clear_heap()
    gc.freeze()


def clear_heap() -> None:
    """Collect among everything: what is of no use any more, before another model is loaded beside it."""
    gc.unfreeze()
    gc.collect()
