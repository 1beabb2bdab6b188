"""Which sequences of a pack form padded batches: every one once and in order, few shapes, little padding, no loss."""

import itertools
import random

import pytest

from services.trainer.attention_batches import AttentionBatch, decode, encode, padded_length, plan_batches


def random_lengths(seed: int) -> list[int]:
    drawn = random.Random(seed)
    return sorted((min(16384, int(drawn.lognormvariate(7, 1)) + 1) for _ in range(40)), reverse=seed % 2 == 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_is_in_one_batch_and_the_order_stays(seed: int) -> None:
    lengths = random_lengths(seed)
    plan = plan_batches(lengths)
    assert [length for batch in plan for length in batch.lengths] == lengths
    assert decode(encode(plan)) == plan
    for before, after in itertools.pairwise(plan):
        assert before.longest or after.longest, "two packed neighbours are one"


@pytest.mark.parametrize("seed", range(20))
def test_padding_is_never_more_than_it_can_win_back(seed: int) -> None:
    for batch in plan_batches(random_lengths(seed)):
        if batch.longest:
            assert max(batch.lengths) <= batch.longest
            assert batch.tokens >= 0.75 * batch.longest * len(batch.lengths)


def test_equal_lengths_on_the_grid_are_one_batch_without_a_copy() -> None:
    for length in (512, 2048, 16384):
        lengths = [length] * (16384 // length)
        (batch,) = plan_batches(lengths)
        assert batch == AttentionBatch(length, lengths)
        assert batch.is_full


def test_short_sequences_stay_packed() -> None:
    lengths = [200] * 40 + [100] * 30
    assert plan_batches(lengths) == [AttentionBatch(0, lengths)]
    assert plan_batches([2]) == [AttentionBatch(0, [2])]


def test_long_ones_are_padded_and_the_short_ones_behind_them_are_not() -> None:
    long, short = plan_batches([9000, 300, 290, 250])
    assert (long.longest, long.lengths, long.is_full) == (9216, [9000], False)
    assert (short.longest, short.lengths) == (0, [300, 290, 250])


def test_thousands_of_packs_need_few_shapes() -> None:
    shapes = {
        (len(batch.lengths), batch.longest)
        for seed in range(0, 1000, 2)
        for batch in plan_batches(random_lengths(seed))
        if batch.longest
    }
    assert len(shapes) < 200


def test_padded_lengths_are_on_a_grid_that_widens() -> None:
    assert [padded_length(n) for n in (1, 128, 129, 2049, 4097, 9000, 16384, 16385)] == [
        128,
        128,
        256,
        2176,
        4352,
        9216,
        16384,
        17408,
    ]
