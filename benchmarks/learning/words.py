"""A seed -> words whose letters are to be written in reverse, answers to learn from, and the score of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from services.trainer.tiny_model import END, byte_tokenizer

LETTERS = "abcdefgh"
LENGTH = 3
LONGEST = LENGTH + 2
"""Tokens of an answer: one more than a right one needs."""
HELD_OUT = 64

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Words:
    """The task: `abc=` is to be answered by `cba` and the end."""

    trained: Ids
    """[words, LENGTH] token ids, of which prompts are drawn."""
    held_out: Ids
    """[HELD_OUT, LENGTH]: no prompt."""
    sign: int
    end: int

    def prompts(self, words: Ids) -> Ids:
        """[words, LENGTH + 1]."""
        return np.concatenate([words, np.full((len(words), 1), self.sign, np.int32)], axis=1)

    def copied(self, words: Ids) -> Ids:
        """[words, LENGTH + 1]: the wrong answer, with its end."""
        return np.concatenate([words, np.full((len(words), 1), self.end, np.int32)], axis=1)

    def reversed(self, words: Ids) -> Ids:
        """[words, LENGTH + 1]: the right one."""
        return self.copied(words[:, ::-1])

    def demonstrations(self, words: Ids, right: float, random: np.random.Generator) -> Ids:
        """Right answers for this share of the words, and copies for the others."""
        is_right = random.random((len(words), 1)) < right
        return np.where(is_right, self.reversed(words), self.copied(words)).astype(np.int32)

    def rewards(self, words: Ids, answers: Sequence[Ids]) -> list[float]:
        """1 for the right answer and its end, 0 for everything else."""
        return [
            float(np.array_equal(answer, wanted)) for answer, wanted in zip(answers, self.reversed(words), strict=True)
        ]


def make_words(seed: int) -> Words:
    """All words that are not the same in reverse; which of them are held out depends on the seed."""
    tokenizer = byte_tokenizer()
    words = [
        word for word in product(tokenizer.convert_tokens_to_ids(list(LETTERS)), repeat=LENGTH) if word != word[::-1]
    ]
    shuffled = np.random.default_rng(seed).permutation(np.array(words, np.int32))
    sign, end = tokenizer.convert_tokens_to_ids(["=", END])
    return Words(shuffled[HELD_OUT:], shuffled[:HELD_OUT], sign, end)
