"""Rows of an sft run -> exact prompt and answer tokens."""

import pytest

from services.rollout.demonstration import read_demonstration, split_row
from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.written_rollout import RowReader, ready
from services.trainer.tiny_model import byte_tokenizer
from shared.messages import Prompt

END = 258
CHAT = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
LONGER = [*CHAT, {"role": "user", "content": "+3"}, {"role": "assistant", "content": "5"}]


def row(text, label=None, group_id=0):
    return Prompt(group_id, "sft", "sums", 4, text, 1, label, {"level": 1})


def demonstrate(rows, tokenizer):
    """The attempt of each row, for a group of one."""
    made = RowReader(read_demonstration, tokenizer, "w").attempts(rows)
    assert all(isinstance(one, GroupRejected) or len(one) == 1 for one in made)
    return [one if isinstance(one, GroupRejected) else one[0] for one in made]


def test_a_demonstration_is_the_prompt_as_for_rl_and_the_label_with_the_end_token(tokenizer):
    (made,) = demonstrate([row("1+1=", "2")], tokenizer)
    assert made.prompt_ids.tolist() == tokenizer.encode("1+1=")
    assert made.token_ids.tolist() == [*tokenizer.encode("2"), END]
    assert made.logprobs.tolist() == [0.0, 0.0]
    assert (made.loss_mask, made.weight_versions) == ([(1, 2)], [(0, 2)])
    assert (made.reward, made.group_size, made.attempt, made.kind, made.preference) == (0.0, 1, 0, "sft", None)
    assert (made.text, made.finish_reason, made.metadata) == ("2", "stop", {"level": 1})


def test_without_a_label_the_assistants_last_message_is_the_answer(tokenizer):
    labelled, spoken = demonstrate([row(CHAT[:1], "2"), row(CHAT)], tokenizer)
    assert spoken.prompt_ids.tolist() == labelled.prompt_ids.tolist()
    assert spoken.token_ids.tolist() == labelled.token_ids.tolist()
    assert spoken.prompt_ids.tolist() == tokenizer.encode(tokenizer.prompt_text(CHAT[:1]))


def test_every_turn_of_a_conversation_is_trained_as_it_would_be_alone(tokenizer):
    first, second, whole = demonstrate([row(CHAT), row(LONGER[:3], "5"), row(LONGER)], tokenizer)
    sequence = [*whole.prompt_ids.tolist(), *whole.token_ids.tolist()]
    assert whole.prompt_ids.tolist() == first.prompt_ids.tolist()
    assert sequence == [*second.prompt_ids.tolist(), *second.token_ids.tolist()]
    between = len(whole.token_ids) - 4
    assert whole.loss_mask == [(1, 2), (0, between), (1, 2)]


def test_a_muted_turn_is_not_trained_and_a_label_is_trained_alone(tokenizer):
    muted = [CHAT[0], {**CHAT[1], "step_loss_mask": 0}, *LONGER[2:]]
    quiet, labelled = demonstrate([row(muted), row(LONGER[:3], "5")], tokenizer)
    assert [value for value, _ in quiet.loss_mask] == [0, 0, 1]
    assert labelled.loss_mask == [(1, 2)]
    everything = [*labelled.prompt_ids.tolist(), *labelled.token_ids.tolist()]
    assert [*quiet.prompt_ids.tolist(), *quiet.token_ids.tolist()] == everything


def test_plain_prompts_get_the_chat_template_where_the_run_says_so(tokenizer):
    always = ModelTokenizer(byte_tokenizer(), always_chat=True)
    (plain,), (chat,) = demonstrate([row("1+1", "2")], always), demonstrate([row(CHAT)], tokenizer)
    assert plain.prompt_ids.tolist() == chat.prompt_ids.tolist()


def test_labels_that_are_no_text_are_written_as_text():
    assert split_row(row("1+1=", 2)) == ("1+1=", "2")


@pytest.mark.parametrize("text", ["1+1=", [], CHAT[:1], LONGER[:3]])
def test_a_row_that_shows_no_answer_is_rejected(text):
    with pytest.raises(GroupRejected, match="shows no answer"):
        split_row(row(text))


def test_a_rejected_row_does_not_disturb_its_neighbours(tokenizer):
    made = demonstrate([row("a", "1", 0), row("b", None, 1), row("c", "3", 2)], tokenizer)
    assert isinstance(made[1], GroupRejected)
    assert [r.token_ids.tolist() for r in (made[0], made[2])] == [[*tokenizer.encode(x), END] for x in "13"]
    assert demonstrate([row("b")], tokenizer)[0].args == made[1].args


def test_the_group_of_a_demonstration_counts_prompt_and_answer(tokenizer):
    group = ready(demonstrate([row("1+1=", "22", 6)], tokenizer))
    assert (group.group_id, group.lengths, group.rewards, group.oldest_version) == (6, [7], [0.0], 0)
