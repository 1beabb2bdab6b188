"""The benchmark of what publishing costs: blocks with and without it train the same steps, versions are proven."""

from benchmarks.publishing import SHAPES, measure


async def test_blocks_with_and_without_publishing_are_compared_and_every_version_is_proven_or_replaced() -> None:
    cost = await measure(SHAPES["demo"], pairs=2, block=3, step_s=0.02)
    assert cost.steps == 6
    assert 1 <= cost.versions <= cost.steps + 2  # with the first one of each block, which is not measured
    assert 0 < cost.offer_s < cost.step_publishing_s
    assert cost.step_s > 0
    assert cost.lost_quartiles == sorted(cost.lost_quartiles)
    assert cost.parameters > 250_000
    assert cost.tokens >= 4 * 31
