"""The position of a client in a run's event stream <-> the id that it sends back as Last-Event-ID."""

import re
from dataclasses import dataclass

from services.gateway.refusals import Refusal

_FORM = re.compile(r"(\d{1,20}-\d{1,20})_(\d{1,20}-\d{1,20})_(\d{1,20}-\d{1,20})_([a-z]*)_(-?\d{1,18})")


@dataclass(frozen=True, slots=True)
class Bookmark:
    """What the client has seen: the last entry of each stream, the state, the newest complete evaluation."""

    events: str = "0-0"
    steps: str = "0-0"
    weights: str = "0-0"
    state: str = ""
    evaluated: int = -1

    def __str__(self) -> str:
        return f"{self.events}_{self.steps}_{self.weights}_{self.state}_{self.evaluated}"


def parse_bookmark(text: str) -> Bookmark:
    """Refusal 422 if the text is no id of this stream; empty text is the beginning."""
    if not text:
        return Bookmark()
    found = _FORM.fullmatch(text)
    if found is None:
        raise Refusal(422, f"Last-Event-ID is {text!r}; send the id of the last event received, or leave it out")
    events, steps, weights, state, evaluated = found.groups()
    return Bookmark(events, steps, weights, state, int(evaluated))
