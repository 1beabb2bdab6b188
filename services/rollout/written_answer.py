"""A prompt and an answer that somebody wrote -> pieces of text, each trained or context."""

from dataclasses import dataclass

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from shared.messages import MUTE, Preference, Spans, Turns


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of an answer: one turn of the assistant, which the end-of-sequence token ends, or what comes between two."""

    text: str
    of_assistant: bool
    trained: bool = False


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """What a row says, before it becomes tokens."""

    prompt: str
    pieces: list[Piece]
    preference: Preference | None = None
    """Which answer of a pair it is."""

    @property
    def texts(self) -> list[str]:
        """To be encoded one by one: the prompt and the pieces."""
        return [self.prompt, *(piece.text for piece in self.pieces)]

    def lay_out(self, encoded: list[list[int]], eos_id: int) -> tuple[list[int], list[int], Spans]:
        """The token ids of `texts` -> those of the prompt, those after it, and which of these are trained."""
        token_ids: list[int] = []
        loss_mask: Spans = []
        for piece, ids in zip(self.pieces, encoded[1:], strict=True):
            added = [*ids, eos_id] if piece.of_assistant else ids
            token_ids += added
            loss_mask.append((int(piece.trained), len(added)))
        return encoded[0], token_ids, loss_mask

    def text(self, eos: str) -> str:
        """All pieces as one text, without the last end of sequence."""
        return "".join(piece.text + eos * piece.of_assistant for piece in self.pieces).removesuffix(eos)


def write_answer(
    tokenizer: ModelTokenizer, prompt: str | Turns, answer: str | Turns, preference: Preference | None = None
) -> WrittenAnswer:
    """Text goes after the prompt as it is. Messages are written by the chat template, and those of the assistant that
    are not muted are trained.

    Every turn of the assistant is laid out as it is when it is the last one: a template that takes the thinking out of
    earlier turns does not change what the policy has written, nor would it in a run of kind rl.

    Raises:
        GroupRejected: the template does not take the messages, or no message is trained.
    """
    if isinstance(answer, str):
        return WrittenAnswer(tokenizer.prompt_text(prompt), [Piece(answer, True, True)], preference)
    before: Turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    pieces, between = list[Piece](), Turns()
    asked = tokenizer.prompt_text(_plain(before))
    history = list(before)
    for message in answer:
        if message.get("role") != "assistant":
            between.append(message)
            continue
        if between:
            pieces.append(Piece(tokenizer.following_text(_plain(between), True, _plain(history)), of_assistant=False))
            history, between = [*history, *between], []
        said = tokenizer.answer_text(_plain(history), _plain([message])[0])
        pieces.append(Piece(said, of_assistant=True, trained=message.get(MUTE) != 0))
        history.append(message)
    return WrittenAnswer(asked, _checked(pieces), preference)


def _checked(pieces: list[Piece]) -> list[Piece]:
    """Without what comes after the last trained turn: it changes nothing."""
    last = max((number for number, piece in enumerate(pieces) if piece.trained), default=None)
    if last is None:
        raise GroupRejected("no message of the assistant is trained; leave one without step_loss_mask = 0")
    return pieces[: last + 1]


def _plain(messages: Turns) -> Turns:
    """What the chat template is to see."""
    return [{name: value for name, value in message.items() if name != MUTE} for message in messages]
