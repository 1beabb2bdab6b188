"""A name that does not exist -> the hint that goes into the error: the closest name, or all of them."""

import difflib
from collections.abc import Iterable

SHOWN = 20


def suggest(given: str, known: Iterable[str], what: str) -> str:
    """`did you mean X?` where one name is close, else the names there are; `what` is their plural, such as datasets."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    if not names:
        return f"there are no {what} yet"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} here: {', '.join(names[:SHOWN])}{more}"
