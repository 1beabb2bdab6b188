"""The schedule of blows."""

from itertools import islice, pairwise

from benchmarks.chaos.schedule import APART, BURST, TARGETS, blows


def test_a_seed_names_the_same_blows_again() -> None:
    first, second, other = (list(islice(blows(seed, (0.5, 3.0)), 100)) for seed in (7, 7, 8))
    assert first == second != other


def test_every_target_comes_up_and_none_twice_in_a_short_while() -> None:
    targets = [blow.target for blow in islice(blows(3, (0.5, 3.0)), 400)]
    assert set(targets) == set(TARGETS)
    assert all(target not in targets[at + 1 : at + 1 + APART] for at, target in enumerate(targets))
    assert min(targets.count(target) for target in TARGETS) > 400 / len(TARGETS) / 2


def test_a_few_blows_only_freeze() -> None:
    seconds = [blow.freeze_s for blow in islice(blows(3, (0.5, 3.0)), 400)]
    frozen = [s for s in seconds if s]
    assert 0.05 < len(frozen) / len(seconds) < 0.25
    assert max(frozen) > 2


def test_blows_come_in_bursts_between_which_the_run_makes_a_step() -> None:
    firsts = [at for at, blow in enumerate(islice(blows(3, (0.5, 3.0)), 400)) if blow.after_step]
    lengths = {after - before for before, after in pairwise(firsts)}
    assert firsts[0] == 0
    assert lengths == set(range(BURST[0], BURST[1] + 1))


def test_one_target_alone_can_be_asked_for() -> None:
    assert {blow.target for blow in islice(blows(3, (0.5, 3.0), ("redis",)), 20)} == {"redis"}
