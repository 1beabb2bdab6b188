"""A row of a dpo run -> its two answers, the chosen one and the rejected one."""

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.written_answer import WrittenAnswer, write_answer
from shared.messages import Prompt


def read_preference(prompt: Prompt, tokenizer: ModelTokenizer) -> list[WrittenAnswer]:
    """GroupRejected if the row has no pair, or the chat template does not take its messages, or makes both alike."""
    if prompt.chosen is None or prompt.rejected is None:
        raise GroupRejected("the row has no pair of answers; upload the dataset with chosen and rejected in every row")
    chosen = write_answer(tokenizer, prompt.prompt, prompt.chosen, "chosen")
    rejected = write_answer(tokenizer, prompt.prompt, prompt.rejected, "rejected")
    if chosen.pieces == rejected.pieces:
        raise GroupRejected("the chat template writes both answers alike, so that neither can be preferred")
    return [chosen, rejected]
