"""Which tokens are too old."""

from functools import partial

from services.trainer.corrections.staleness_mask import staleness_mask
from tests.services.trainer.corrections.mismatched import corrected, mismatched


def test_tokens_of_versions_beyond_the_bound_are_masked() -> None:
    tokens = mismatched(7)
    weight, _ = corrected(partial(staleness_mask, most=2), tokens)
    assert weight == [float(versions <= 2) for versions in tokens.staleness.tolist()]
