"""Mixing datasets by weight: exact shares, replayable from any point, changes of weight act from then on."""

from collections import Counter

from services.gateway.mix_datasets import Cursor, Draw, draw, dump_cursor, load_cursor

WEIGHTS = {"a": 3.0, "b": 1.0}
SIZES = {"a": 10, "b": 1000}


def test_shares_are_exact_over_every_stretch() -> None:
    draws, _ = draw({}, {"a": 5, "b": 3, "c": 2}, {"a": 100, "b": 100, "c": 100}, 100)
    for begin in range(0, 100, 10):
        assert Counter(one.dataset for one in draws[begin : begin + 10]) == {"a": 5, "b": 3, "c": 2}


def test_each_dataset_counts_its_own_positions_and_epochs() -> None:
    draws, _ = draw({}, WEIGHTS, SIZES, 16)
    of_a = [(one.epoch, one.position) for one in draws if one.dataset == "a"]
    of_b = [(one.epoch, one.position) for one in draws if one.dataset == "b"]
    assert of_a == [(0, i) for i in range(10)] + [(1, 0), (1, 1)]
    assert of_b == [(0, i) for i in range(4)]


def test_any_batching_and_any_restart_draws_the_same_rows() -> None:
    weights = {"a": 0.1, "b": 0.7, "c": 1 / 3}
    sizes = {"a": 7, "b": 11, "c": 13}
    whole, _ = draw({}, weights, sizes, 200)
    pieces: list[Draw] = []
    cursor: Cursor = {}
    for count in [1, 2, 3, 64, 30, 100]:
        draws, cursor = draw(load_cursor(dump_cursor(cursor)), weights, sizes, count)
        pieces += draws
    assert pieces == whole


def test_a_dataset_that_was_paused_does_not_catch_up_when_it_comes_back() -> None:
    _, cursor = draw({}, {"a": 1, "b": 1}, SIZES, 10)
    draws, cursor = draw(cursor, {"a": 1, "b": 0}, SIZES, 100)
    assert {one.dataset for one in draws} == {"a"}
    draws, _ = draw(cursor, {"a": 1, "b": 1}, SIZES, 10)
    assert Counter(one.dataset for one in draws) == {"a": 5, "b": 5}
    assert next(one.position for one in draws if one.dataset == "b") == 5
