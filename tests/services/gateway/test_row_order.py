"""The order of rows: every row once an epoch, another order each epoch, the same for ever."""

from services.gateway.row_order import RowOrder


def epoch(order: RowOrder, number: int, rows: int) -> list[int]:
    return [order.row(number, position) for position in range(rows)]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    order = RowOrder("sums", 100, seed=1, shuffle=True)
    first, second = epoch(order, 0, 100), epoch(order, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_without_shuffling_the_order_is_that_of_the_file() -> None:
    assert epoch(RowOrder("sums", 5, 1, shuffle=False), 3, 5) == [0, 1, 2, 3, 4]


def test_the_order_depends_on_seed_and_name_and_never_changes() -> None:
    # a run that is replayed years later has to meet its rows in this order
    assert epoch(RowOrder("sums", 8, 0, True), 0, 8) == PINNED
    assert epoch(RowOrder("sums", 8, 1, True), 0, 8) != PINNED
    assert epoch(RowOrder("other", 8, 0, True), 0, 8) != PINNED
    assert sorted(epoch(RowOrder("sums", 8, -3, True), 0, 8)) == list(range(8))


PINNED = [1, 5, 6, 0, 4, 2, 7, 3]
