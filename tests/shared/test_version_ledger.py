"""What is kept of a version: merged however often it is told, and bounded whatever the number of engines."""

from shared.messages import Rendezvous, WeightVersion
from shared.version_ledger import MOST_REPLACED, MOST_TAKES, Take, encode_record, with_announcement, with_takes

PLACE = Rendezvous("h", 1, "g", "nccl", 0.0, 0.0)


def version(checksum: str) -> WeightVersion:
    return WeightVersion(3, 3, [], checksum, {}, PLACE)


def test_the_same_weights_announced_again_are_the_same_record() -> None:
    first = with_takes(with_announcement(None, version("a"), 10.0), {"one": Take("done", 11.0, "x", {"total": 1.0})})
    again = with_announcement(first, version("a"), 20.0)
    assert (again.checksum, again.backend, again.announced, again.announcements) == ("a", "nccl", 10.0, 2)
    assert again.takes == first.takes


def test_other_weights_under_the_same_number_begin_anew_and_the_old_ones_are_named() -> None:
    record = with_takes(with_announcement(None, version("0"), 10.0), {"one": Take("done", 11.0)})
    for number in range(1, 20):
        record = with_announcement(record, version(str(number)), 10.0 + number)
    assert (record.checksum, record.announced, record.announcements, record.takes) == ("19", 29.0, 1, {})
    assert record.replaced == [str(number) for number in range(19 - MOST_REPLACED, 19)]


def test_an_engine_that_holds_a_version_has_taken_it_once_and_one_that_started_anew_twice() -> None:
    record = with_announcement(None, version("a"), 10.0)
    record = with_takes(record, {"one": Take("failed", 11.0, failures=1, reason="no memory")})
    assert record.takes["one"].state == "failed"
    took = Take("done", 12.0, "x", {"total": 1.0}, failures=1, reason="timed out")
    record = with_takes(record, {"one": took})
    record = with_takes(record, {"one": Take("done", 30.0, "x")})
    merged = record.takes["one"]
    assert (merged.state, merged.time, merged.seconds) == ("done", 12.0, {"total": 1.0})
    assert (merged.failures, merged.reason) == (2, "timed out")
    record = with_takes(record, {"one": Take("done", 40.0, "y", {"total": 2.0})})
    assert (record.takes["one"].time, record.takes["one"].failures) == (40.0, 2)


def test_of_many_engines_those_are_listed_that_failed_or_were_slow_and_the_others_counted() -> None:
    takes = {f"e{n:04}": Take("done", 1.0, "x", {"connect": 0.1, "total": n / 1000}) for n in range(1000)}
    takes |= {"bad": Take("failed", 1.0, failures=1, reason="r" * 300), "shaky": Take("done", 1.0, failures=1)}
    record = with_takes(with_announcement(None, version("a" * 64), 10.0), takes)
    assert len(record.takes) == MOST_TAKES
    assert {"bad", "shaky", "e0999"} < record.takes.keys()
    assert len(record.takes) + record.more_takes == len(takes)
    assert len(encode_record(record)) < 8000
