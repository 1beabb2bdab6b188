"""JSONL files with everything that can be wrong with them."""

from pathlib import Path

from services.gateway.check_row import RowError
from services.gateway.read_jsonl import read_jsonl


def test_lines_keep_their_numbers_over_blank_ones_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n   \n{"a": "\xc3\xa4\xe2\x80\xa8"}')
    assert list(read_jsonl(file)) == [(1, {"a": 1}), (4, {"a": "ä\u2028"})]


def test_a_broken_line_is_reported_and_the_next_one_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(b'{"a": \n{"a": NaN}\n\xff\n' + b"x" * 100 + b"\n" + b"[" * 60 + b'\n{"a": 1}\n')
    found = dict(read_jsonl(file, max_line_bytes=64))
    errors = {line: str(value) for line, value in found.items() if isinstance(value, RowError)}
    assert found[6] == {"a": 1}
    assert sorted(errors) == [1, 2, 3, 4, 5]
    assert errors[1] == "is not JSON: Expecting value at column 6; write one object a line"
    assert "NaN" in errors[2]
    assert "UTF-8" in errors[3]
    assert "limit of 64 bytes" in errors[4]


def test_a_line_nested_beyond_reading_is_an_error_of_that_line(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(b"[" * 200_000 + b"\n")
    ((line, error),) = read_jsonl(file)
    assert line == 1
    assert isinstance(error, RowError)
    assert "nested deeper than 100 levels" in str(error)
