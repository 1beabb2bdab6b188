"""What requests saw of a version: the longest time between two tokens that falls into its time, for each of them."""

import pytest

from benchmarks.request_load import Arrivals
from benchmarks.updated_engine import Load, spread


def test_a_pause_is_the_longest_gap_that_overlaps_a_version_of_each_request_under_way() -> None:
    arrivals = Arrivals(streams=[[0.0, 1.0, 4.0, 4.5, 9.0], [3.0, 3.5], [5.0, 6.0, 7.0], [0.0, 1.0]])
    assert arrivals.gaps(2.0, 4.2) == [3.0, 0.5]
    assert arrivals.gaps(20.0, 21.0) == []


def test_pauses_are_those_of_versions_and_the_usual_ones_those_between() -> None:
    load = Load([(1.0, 2.0), (6.0, 7.0)], Arrivals(streams=[[0.0, 2.0, 2.5, 3.0, 3.25, 6.5, 7.0]]))
    assert load.pauses() == {"p50": pytest.approx(2.625), "p99": 2.0, "max": 3.25}
    assert load.usual()["max"] == 3.25
    assert spread([]) == {}
