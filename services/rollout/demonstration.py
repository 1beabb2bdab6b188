"""A row of an sft run -> the one answer that it shows, to be learnt."""

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.written_answer import WrittenAnswer, write_answer
from shared.messages import Prompt, Turns


def read_demonstration(prompt: Prompt, tokenizer: ModelTokenizer) -> list[WrittenAnswer]:
    """GroupRejected if the row shows no answer, or the chat template does not take its messages."""
    asked, answer = split_row(prompt)
    return [write_answer(tokenizer, asked, answer)]


def split_row(prompt: Prompt) -> tuple[str | Turns, str | Turns]:
    """What is asked and what is to be answered: the label, or else the messages from the assistant's first one on.

    Raises:
        GroupRejected: the row has neither.
    """
    if prompt.label is not None:
        return prompt.prompt, str(prompt.label)
    messages = prompt.prompt
    if isinstance(messages, str) or not messages or messages[-1].get("role") != "assistant":
        raise GroupRejected("the row shows no answer; give it a label, or end its messages with one of the assistant")
    first = next(number for number, message in enumerate(messages) if message.get("role") == "assistant")
    return messages[:first], messages[first:]
