"""One attempt -> its tokens by margin; accounts of a run: generated = trained + evaluated + dropped + undecided."""

from collections.abc import Mapping

from shared.messages import Attempt

Margins = dict[str, int]
"""`dataset|<name>`, `worker|<name>`, `version|<number>` -> tokens; each kind adds up to the attempt's tokens."""
KINDS = ("dataset", "worker", "version")


def margins(attempt: Attempt) -> Margins:
    """The tokens after the prompt of one attempt, counted once for each kind of margin."""
    tokens = attempt.tokens
    found = {f"dataset|{attempt.dataset}": tokens, f"worker|{attempt.worker}": tokens}
    for version, count in attempt.weight_versions:
        found[f"version|{version}"] = found.get(f"version|{version}", 0) + count
    return found


def by_state(accounts: Mapping[str, int]) -> dict[str, Margins]:
    """The hash of accounts -> state -> margins."""
    states: dict[str, Margins] = {}
    for name, tokens in accounts.items():
        state, _, margin = name.partition("|")
        states.setdefault(state, {})[margin] = tokens
    return states


def undecided(accounts: Mapping[str, int]) -> Margins:
    """Tokens by margin that were generated and are neither trained, evaluated nor dropped yet."""
    states = by_state(accounts)
    rest = dict(states.pop("generated", {}))
    for margins_of_state in states.values():
        for margin, tokens in margins_of_state.items():
            rest[margin] = rest.get(margin, 0) - tokens
    return {margin: tokens for margin, tokens in rest.items() if tokens}
