"""Rollouts -> flat tensors: pairs are told apart by the field, whatever their order and numbers."""

from dataclasses import replace

from services.trainer.training_batch import training_batch
from tests.services.trainer.recorded_groups import rollouts


def test_the_chosen_answer_is_the_even_one_of_its_pair_in_any_order() -> None:
    (one, other), (third, fourth) = rollouts(8, "dpo"), rollouts(3, "dpo")
    batch = training_batch([other, third, one, fourth])
    first = batch.lengths.cumsum(0) - batch.lengths
    assert batch.pair[first].tolist() == [3, 0, 2, 1]


def test_the_field_says_which_answer_was_chosen_and_not_the_number_of_the_attempt() -> None:
    chosen, rejected = rollouts(8, "dpo")
    swapped = [replace(chosen, preference="rejected"), replace(rejected, preference="chosen")]
    batch = training_batch(swapped)
    assert batch.pair.tolist() == [1] * int(batch.lengths[0]) + [0] * int(batch.lengths[1])
