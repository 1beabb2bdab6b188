"""Which samples off-policy sequence masking leaves out."""

from functools import partial

from services.trainer.corrections.opsm import opsm
from tests.services.trainer.corrections.mismatched import corrected, log_ratios, mismatched


def test_bad_tokens_of_samples_that_the_policy_left_are_masked_and_good_ones_are_not() -> None:
    tokens = mismatched(6)
    weight, _ = corrected(partial(opsm, delta=0.1), tokens)
    pairs = zip(tokens.advantages.tolist(), log_ratios(tokens)[1], strict=True)
    assert weight == [float(not (advantage < 0 and -whole.mean() > 0.1)) for advantage, whole in pairs]
    assert 0 < sum(weight) < len(weight)
