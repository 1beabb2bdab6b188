"""Which versions stay in a store."""

import pytest

from services.trainer.version_names import VersionName, superfluous


def chain(kinds: str, epoch: int = 1, first: int = 0) -> list[VersionName]:
    """`FDD` is a full version and two deltas."""
    return [
        VersionName(epoch, number, first + number, "full" if kind == "F" else "delta")
        for number, kind in enumerate(kinds)
    ]


def kept(found: list[VersionName], mine: list[VersionName], keep: int, read: tuple[int, ...] = ()) -> list[VersionName]:
    gone = superfluous(dict.fromkeys(found, True), mine, keep, read)
    return [name for name in found if name not in gone]


def test_a_name_tells_what_it_was_made_of_and_other_names_tell_nothing() -> None:
    name = VersionName(3, 7, 12, "delta", "0123abcd")
    assert str(name) == "v000012-delta-e3-000007-0123abcd"
    assert VersionName.parse(str(name)) == name
    assert VersionName.parse("v000012") is None
    assert VersionName.parse(".writing_v000012-delta-e3-000007-0123abcd") is None


@pytest.mark.parametrize(
    ("kinds", "keep", "stays"),
    [("FFFF", 2, [2, 3]), ("FDDD", 1, [0, 1, 2, 3]), ("FDDFDD", 2, [3, 4, 5]), ("FDDFD", 3, [0, 1, 2, 3, 4])],
)
def test_the_newest_stay_with_all_that_they_build_on(kinds: str, keep: int, stays: list[int]) -> None:
    mine = chain(kinds)
    assert [name.number for name in kept(mine, mine, keep)] == stays


def test_a_version_that_an_engine_reads_stays_with_all_that_it_builds_on() -> None:
    mine = chain("FDDFFF")
    assert [name.number for name in kept(mine, mine, 1, read=(1,))] == [0, 1, 5]


def test_versions_of_an_earlier_trainer_stay_while_there_are_too_few_of_this_one() -> None:
    earlier, mine = chain("FDDFD", epoch=1), chain("FD", epoch=2, first=3)
    assert kept([*earlier, *mine], mine, 3) == [*earlier[3:], *mine]
    assert kept([*earlier, *mine], mine, 2) == mine


def test_what_a_later_trainer_wrote_is_left_alone_by_one_that_does_not_know_yet() -> None:
    mine, later = chain("FFFFF", epoch=1), chain("F", epoch=2, first=1)
    assert kept([*mine, *later], mine, 1) == [mine[-1], *later]


def test_an_epoch_that_redis_lost_does_not_make_the_older_trainer_the_newer_one() -> None:
    lost, mine = chain("FFFFF", epoch=2), chain("FD", epoch=2, first=1)
    assert kept([*lost, *mine], mine, 2) == mine


def test_what_is_not_whole_goes_unless_a_later_trainer_writes_it() -> None:
    mine, half, later = chain("FD"), VersionName(1, 9, 9, "full"), VersionName(2, 0, 1, "full")
    found = {**dict.fromkeys(mine, True), half: False, later: False}
    assert superfluous(found, mine, 2, ()) == [half]
