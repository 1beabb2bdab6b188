"""Lines as the services, Redis, the router and SGLang write them."""

import json
import time
from datetime import UTC, datetime

import pytest

from sluice.cli.merge_logs import merge_logs

DAY = "2026-03-05"


def at(clock: str) -> float:
    return datetime.fromisoformat(f"{DAY} {clock}").timestamp()


def order(*logs: tuple[str, list[str], float]) -> list[str]:
    return [f"{line.service} {line.text[-1]}" for line in merge_logs(logs)]


def test_every_program_writes_the_time_in_its_own_way() -> None:
    last = at("10:00:09")
    assert order(
        ("gateway", ["10:00:01 INFO    gateway   service_started a", "10:00:05 INFO    gateway   run_taken b"], last),
        ("redis", [f"21699:M 05 Mar 2026 10:00:02.5{n} * Ready to accept connections {n}" for n in (1, 2)], last),
        ("router", ["\x1b[2m2026-03-05 10:00:04\x1b[0m [32m INFO\x1b[0m smg c"], last),
        ("sglang-0", ["[2026-03-05 10:00:03] The server is fired up d"], last),
        ("trainer", [json.dumps({"event": "e", "time": at("10:00:06")})], last),
    ) == ["gateway a", "redis 1", "redis 2", "sglang-0 d", "router c", "gateway b", "trainer }"]


def test_a_line_without_a_time_stays_behind_the_one_before_it() -> None:
    trace = ["10:00:01 ERROR trainer failed a", "Traceback (most recent call last): b", "ValueError: 12:99:99 c"]
    lines = merge_logs([("trainer", trace, at("10:00:09")), ("gateway", ["10:00:00 INFO d"], at("10:00:00"))])
    assert [line.text[-1] for line in lines] == ["d", "a", "b", "c"]


def test_clocks_without_a_date_are_of_the_day_before_where_the_log_goes_past_midnight() -> None:
    late = ["23:59:58 INFO a", "00:00:03 INFO d"]
    assert order(("one", late, at("00:00:04")), ("two", ["23:59:59 INFO b", "00:00:01 INFO c"], at("00:00:04"))) == [
        "one a",
        "two b",
        "two c",
        "one d",
    ]


def test_times_of_another_zone_are_brought_to_the_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        utc = datetime.fromtimestamp(at("10:00:02"), UTC).strftime("%Y-%m-%dT%H:%M:%S.5Z b")
        local = ["10:00:02 INFO a", "10:00:03 INFO c"]
        assert order(("gateway", local, at("10:00:03")), ("router", [utc], at("10:00:03"))) == [
            "gateway a",
            "router b",
            "gateway c",
        ]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_logs_without_lines_or_times_are_merged_too() -> None:
    assert order(("a", [], 1.0), ("b", ["x", "y"], 2.0), ("c", ["z"], 1.0)) == ["c z", "b x", "b y"]
