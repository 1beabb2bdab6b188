"""Rows of a dpo run -> two attempts that differ in the answer alone."""

import pytest

from services.rollout.preference import read_preference
from services.rollout.written_rollout import RowReader, ready
from shared.messages import Prompt

END = 258
ASK = [{"role": "user", "content": "1+1"}]


def told(text, **more):
    return {"role": "assistant", "content": text, **more}


def row(prompt, chosen, rejected, group_id=0):
    return Prompt(group_id, "dpo", "pairs", 4, prompt, 2, metadata={"level": 1}, chosen=chosen, rejected=rejected)


def attempts(tokenizer, *rows):
    return RowReader(read_preference, tokenizer, "w").attempts(rows)


def test_a_pair_is_a_group_of_two_that_a_field_tells_apart(tokenizer):
    ((chosen, rejected),) = attempts(tokenizer, row("1+1=", "2", "33"))
    assert [(one.preference, one.attempt, one.group_size, one.kind) for one in (chosen, rejected)] == [
        ("chosen", 0, 2, "dpo"),
        ("rejected", 1, 2, "dpo"),
    ]
    assert chosen.prompt_ids.tolist() == rejected.prompt_ids.tolist() == tokenizer.encode("1+1=")
    assert chosen.token_ids.tolist() == [*tokenizer.encode("2"), END]
    assert rejected.token_ids.tolist() == [*tokenizer.encode("33"), END]
    assert (chosen.loss_mask, rejected.loss_mask) == ([(1, 2)], [(1, 3)])
    assert (chosen.text, rejected.text, rejected.metadata) == ("2", "33", {"level": 1})
    group = ready([chosen, rejected])
    assert (group.lengths, group.rewards, group.kind, group.row) == ([6, 7], [0.0, 0.0], "dpo", 4)


def test_conversations_are_laid_out_by_the_template_with_muted_turns_as_context(tokenizer):
    chosen = [told("2", step_loss_mask=0), {"role": "user", "content": "?"}, told("yes")]
    ((long, short),) = attempts(tokenizer, row(ASK, chosen, [told("3")]))
    assert long.prompt_ids.tolist() == tokenizer.encode(tokenizer.prompt_text(ASK))
    assert [value for value, _ in long.loss_mask] == [0, 0, 1]
    assert long.loss_mask[-1] == (1, len("yes") + 1)
    assert short.loss_mask == [(1, 2)]
    assert len(long.token_ids) == sum(count for _, count in long.loss_mask)


@pytest.mark.parametrize(
    ("chosen", "rejected", "sentence"),
    [
        (None, None, "the row has no pair of answers"),
        ("2", None, "the row has no pair of answers"),
        ([told("2")], [told("2", colour="red")], "the chat template writes both answers alike"),
    ],
)
def test_a_row_without_a_pair_is_rejected_and_its_neighbours_are_not(tokenizer, chosen, rejected, sentence):
    before, refused, after = attempts(
        tokenizer, row("a", "1", "2", 0), row(ASK, chosen, rejected, 1), row("c", "5", "6", 2)
    )
    assert sentence in str(refused)
    assert [one.token_ids.tolist()[0] for pair in (before, after) for one in pair] == tokenizer.encode("1256")
