"""A value for each token -> its sum over the token's sequence, whole or discounted from the token to the end."""

import torch


def discounted_sums(values: torch.Tensor, sequence: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """S_t = sum over i >= t of factor^(i - t) * values_i, over the tokens i of the sequence of t.

    The sums double their reach in each round (Hillis and Steele 1986, "Data parallel algorithms", scan), so a device
    takes log2(tokens) rounds, always adds in the same order, and waits for no copy.

    Args:
        values: [tokens], floating; gradients pass.
        sequence: [tokens] integers; the tokens of a sequence stand together.

    Returns:
        [tokens], in the type of `values`.
    """
    reach = 1
    while reach < len(values):
        together = sequence[:-reach] == sequence[reach:]
        further = torch.where(together, values[reach:], 0.0) * factor**reach
        values = torch.cat([values[:-reach] + further, values[-reach:]])
        reach *= 2
    return values


def sequence_sums(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """At each token the sum over all tokens of its sequence; [tokens], arguments as above."""
    if not len(values):
        return values
    place = torch.arange(len(values), device=values.device)
    begins = torch.cat([sequence.new_ones(1, dtype=torch.bool), sequence[1:] != sequence[:-1]])
    first = torch.where(begins, place, 0).cummax(0).values
    return discounted_sums(values, sequence)[first]


def sequence_means(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """At each token the mean over all tokens of its sequence."""
    return sequence_sums(values, sequence) / sequence_sums(torch.ones_like(values), sequence)
