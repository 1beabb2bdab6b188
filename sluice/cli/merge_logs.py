"""Lines of several logs -> one list in order of time; each program writes the time in its own way."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

HEAD_CHARACTERS = 80
"""A line's time is at its beginning."""
CLOCK = re.compile(r"(?:(\d{4}-\d\d-\d\d)[T ])?(?<!\d)(\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?(Z|\+00:00)?(?!\d)")
SLACK = timedelta(minutes=5)
"""Threads may write a little out of order; a clock that goes back further is that of the day before."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a service's log."""

    service: str
    text: str


def merge_logs(logs: Sequence[tuple[str, Sequence[str], float]]) -> list[Line]:
    """Merge (service, lines, time of the last line in seconds since the epoch).

    A line without a time, such as one of a traceback, stays behind the line before it. Lines of the same time stay in
    the order of the logs.
    """
    timed = [
        (stamp, Line(service, text))
        for service, lines, last in logs
        for stamp, text in zip(_times(lines, last), lines, strict=True)
    ]
    return [line for _, line in sorted(timed, key=lambda pair: pair[0])]


def _times(lines: Sequence[str], last: float) -> list[float]:
    """Seconds since the epoch for each line; where a line has a clock without a date, its day is found backwards."""
    found: list[float | None] = []
    after = datetime.fromtimestamp(last)
    for text in reversed(lines):
        stamp = _time(text, after)
        after = stamp or after
        found.append(stamp.timestamp() if stamp else None)
    known = [stamp for stamp in found if stamp is not None]
    before = known[-1] if known else last
    times: list[float] = []
    for stamp in reversed(found):
        before = before if stamp is None else stamp
        times.append(before)
    return times


def _time(text: str, after: datetime) -> datetime | None:
    """The local time that a line begins with; `after` is that of the line behind it."""
    if text.startswith("{"):
        return _json_time(text)
    match = CLOCK.search(text[:HEAD_CHARACTERS])
    if match is None:
        return None
    day, clock, fraction, utc = match.groups()
    try:
        stamp = datetime.fromisoformat(f"{day or after.date()} {clock}.{(fraction or '0'):0<6}")
    except ValueError:
        return None  # digits that are no time
    if utc:
        stamp = stamp.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
    return stamp - timedelta(days=1) if day is None and stamp > after + SLACK else stamp


def _json_time(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(json.loads(text)["time"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
