"""Written answers -> pieces: every turn as the policy would have it, whatever the template does to earlier ones."""

from typing import Any

import pytest

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.written_answer import Piece, write_answer
from services.trainer.tiny_model import byte_tokenizer

END = 258
FORGETS_THINKING = """{%- set last = namespace(user=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.index0 > last.user -%}
<think>{{ m.thinking or '' }}</think>{% endif -%}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
"""As Qwen3's: thinking is written for turns after the user's last message only."""
OPENS_THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
"""As DeepSeek-R1's: an answer is asked for with more than it begins with in a conversation."""
ENDS_OTHERWISE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% else %}<|im_end|>{% endif %}"
)
"""As Phi-3's: the end of a turn is no end of sequence, which is written once at the end of all."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def told(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def with_template(template: str) -> ModelTokenizer:
    bare = byte_tokenizer()
    bare.chat_template = template
    return ModelTokenizer(bare)


def test_text_is_taken_as_it_is(tokenizer):
    written = write_answer(tokenizer, [user("1+1")], "2")
    assert written.texts == ["<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n", "2"]
    assert written.pieces == [Piece("2", of_assistant=True, trained=True)]


def test_every_turn_of_the_assistant_is_trained_and_what_is_between_is_not(tokenizer):
    written = write_answer(tokenizer, "1+1", [told("2"), user("+3"), {"role": "tool", "content": "5"}, told("5")])
    between = "\n<|im_start|>user\n+3<|im_end|>\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n"
    assert written.pieces == [Piece("2", True, True), Piece(between, False), Piece("5", True, True)]
    conversation = [user("1+1"), told("2"), user("+3"), {"role": "tool", "content": "5"}, told("5")]
    whole = tokenizer._render(conversation, generation_prompt=False)
    assert written.prompt + written.text("<|im_end|>") + "<|im_end|>\n" == whole


def test_a_muted_turn_is_context_and_nothing_after_the_last_trained_turn_is_kept(tokenizer):
    answer = [told("2", step_loss_mask=0), user("?"), told("3"), user("!"), told("4", step_loss_mask=0)]
    written = write_answer(tokenizer, [user("1+1")], answer)
    assert [(piece.text, piece.trained) for piece in written.pieces if piece.of_assistant] == [
        ("2", False),
        ("3", True),
    ]
    assert len(written.pieces) == 3
    with pytest.raises(GroupRejected, match="no message of the assistant is trained"):
        write_answer(tokenizer, [user("1+1")], [told("2", step_loss_mask=0)])


def test_tokens_and_mask_follow_the_pieces_and_each_turn_ends(tokenizer):
    written = write_answer(tokenizer, [user("a")], [told("xy", step_loss_mask=0), user("b"), told("z")])
    prompt_ids, token_ids, mask = written.lay_out(tokenizer.encode_all(written.texts), END)
    assert prompt_ids == tokenizer.encode(written.prompt)
    between = tokenizer.encode(written.pieces[1].text)
    assert token_ids == [*tokenizer.encode("xy"), END, *between, *tokenizer.encode("z"), END]
    assert mask == [(0, 3), (0, len(between)), (1, 2)]


def test_a_template_that_forgets_earlier_thinking_leaves_what_was_written():
    answer = [told("2", thinking="one"), user("+3"), told("5", thinking="two")]
    written = write_answer(with_template(FORGETS_THINKING), [user("1+1")], answer)
    assert [piece.text for piece in written.pieces] == [
        "<think>one</think>2",
        "\n<|im_start|>user\n+3<|im_end|>\n<|im_start|>assistant\n",
        "<think>two</think>5",
    ]


def test_calls_of_tools_are_written_by_the_template():
    call = told(None, tool_calls=[{"function": {"name": "add"}}])
    written = write_answer(with_template(FORGETS_THINKING), "1+1", [call, {"role": "tool", "content": "2"}, told("2")])
    assert [piece.text for piece in written.pieces] == [
        "<think></think><call>add</call>",
        "\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n",
        "<think></think>2",
    ]


def test_where_an_answer_does_not_begin_as_it_is_asked_for_its_content_is_taken():
    tokenizer = with_template(OPENS_THINKING)
    written = write_answer(tokenizer, "1+1", [told("easy</think>2"), user("+3"), told("so</think>5")])
    assert written.prompt == "<user>1+1<|im_end|><assistant><think>"
    assert [piece.text for piece in written.pieces] == [
        "easy</think>2",
        "<user>+3<|im_end|><assistant><think>",
        "so</think>5",
    ]
    with pytest.raises(GroupRejected, match="does not begin this answer as it asks for it"):
        write_answer(tokenizer, "1+1", [told("", tool_calls=[{"function": {"name": "add"}}])])


def test_a_template_with_its_own_end_of_turn_keeps_it():
    written = write_answer(with_template(ENDS_OTHERWISE), "1+1", [told("2"), user("+3"), told("5")])
    assert [piece.text for piece in written.pieces] == ["2<end>", "<user>+3<end><assistant>", "5<end>"]


def test_messages_that_the_template_refuses_reject_the_row():
    strict = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(GroupRejected, match="roles must alternate"):
        write_answer(strict, [user("a")], [told("b")])
