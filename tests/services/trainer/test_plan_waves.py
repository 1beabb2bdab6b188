"""Who is paused with whom."""

from services.trainer.gather_engines import Gathering
from services.trainer.plan_waves import plan_waves
from services.trainer.rendezvous import Member
from shared.enrolment import Part


def waiting(**groups: str) -> Gathering:
    """Engines that wait, by name, with the group that each is in."""
    return Gathering({name: Part("enrolled", "now", f"life-{name}", 1, group) for name, group in groups.items()}, {})


def group_of(names: str) -> tuple[Member, ...]:
    return tuple(Member(name, f"life-{name}", 1) for name in names)


def waves(
    gathering: Gathering, limit: int, groups: dict[str, str], first: str = "", together: int = 0
) -> list[list[tuple[str, str]]]:
    """Engines and group of each party of each wave."""
    found = plan_waves(gathering, limit, first, together, {name: group_of(of) for name, of in groups.items()})
    return [[("".join(party.gathering.waiting), party.group) for party in wave.parties] for wave in found]


def planned(gathering: Gathering, limit: int, groups: dict[str, str], first: str = "") -> list[tuple[str, str]]:
    """Engines and group of each wave, which is one party."""
    return [party for (party,) in waves(gathering, limit, groups, first)]


def test_without_a_limit_all_are_one_wave_which_keeps_its_group_while_nobody_comes_or_goes() -> None:
    assert planned(waiting(a="", b=""), 0, {}) == [("ab", "")]
    assert planned(waiting(a="g", b="g"), 0, {"g": "ab"}) == [("ab", "g")]
    assert planned(waiting(a="g", b="g", c=""), 0, {"g": "ab"}) == [("abc", "")]
    assert planned(waiting(a="g"), 0, {"g": "ab"}) == [("a", "")]


def test_a_limit_makes_as_few_waves_as_it_can_and_keeps_groups_that_are_whole() -> None:
    assert planned(waiting(a="", b="", c=""), 2, {}) == [("ab", ""), ("c", "")]
    assert planned(waiting(a="g", b="g", c="", d=""), 2, {"g": "ab"}) == [("ab", "g"), ("cd", "")]
    assert planned(waiting(a="g", c="h", d="h", e=""), 2, {"g": "ab", "h": "cd"}) == [("cd", "h"), ("ae", "")]


def test_a_group_larger_than_the_limit_is_not_kept() -> None:
    assert planned(waiting(a="g", b="g", c="g"), 1, {"g": "abc"}) == [("a", ""), ("b", ""), ("c", "")]


def test_a_group_that_an_engine_has_left_or_does_not_remember_is_not_kept() -> None:
    assert planned(waiting(a="g", b=""), 0, {"g": "ab"}) == [("ab", "")]
    reborn = Gathering({"a": Part("enrolled", "now", "life-2", 1, "g")}, {})
    assert planned(reborn, 0, {"g": "a"}) == [("a", "")]


def test_engines_that_failed_before_come_first() -> None:
    assert planned(waiting(a="", b="", c=""), 1, {}, first="c") == [("c", ""), ("a", ""), ("b", "")]
    assert planned(waiting(a="g", b="g", c=""), 2, {"g": "ab"}, first="c") == [("c", ""), ("ab", "g")]


def test_nobody_waits_in_no_wave() -> None:
    assert planned(waiting(), 0, {"g": "ab"}) == []


def test_parties_of_a_wave_have_groups_of_their_own_and_lose_none_by_what_becomes_of_another() -> None:
    assert waves(waiting(a="", b="", c=""), 0, {}, together=1) == [[("a", ""), ("b", ""), ("c", "")]]
    assert waves(waiting(a="g", b="", c="i"), 0, {"g": "a", "h": "b", "i": "c"}, together=1) == [
        [("a", "g"), ("c", "i"), ("b", "")]
    ]
    assert waves(waiting(a="g", b="g", c="", d=""), 3, {"g": "ab"}, together=2) == [[("ab", "g")], [("cd", "")]]
    assert waves(waiting(a="", b="", c=""), 2, {}, first="c", together=1) == [[("c", ""), ("a", "")], [("b", "")]]


def test_a_party_is_never_larger_than_a_wave() -> None:
    assert waves(waiting(a="", b="", c=""), 1, {}, together=2) == [[("a", "")], [("b", "")], [("c", "")]]
