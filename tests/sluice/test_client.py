"""The client against a real gateway: datasets, runs, events and refusals."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sluice as public
from benchmarks.free_ports import free_port
from shared.errors import SluiceError
from shared.messages import Event
from shared.redis_connection import connect_checked
from shared.streams import Stream
from shared.topology import EVENTS
from sluice.client import Client, GatewayError, GatewayUnreachable
from tests.sluice.conftest import Gateway


def rows_file(folder: Path, count: int = 3) -> Path:
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+1=", "label": str(n + 1)}) + "\n" for n in range(count)))
    return file


def settings(name: str, dataset: str, model: Path) -> dict[str, Any]:
    data = {"datasets": [{"name": dataset}]}
    return {"name": name, "model": {"path": str(model)}, "data": data, "trainer": {"steps": 2}}


async def publish(redis_url: str, run: str, event: Event) -> None:
    async with await connect_checked(redis_url, 10) as redis:
        await Stream[Event](redis, run, EVENTS).publish(event)


@contextlib.contextmanager
def answering(text: str) -> Iterator[str]:
    """The address of a server that gives this answer to the first request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(text.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_pushed_dataset_is_listed_shown_and_deleted(client: Client, tmp_path: Path) -> None:
    told: list[int] = []
    file = rows_file(tmp_path)
    pushed = client.push_dataset("pushed", file, told.append)
    assert pushed.rows == 3
    assert sum(told) == file.stat().st_size
    assert client.dataset("pushed") == pushed
    assert "pushed" in [dataset.name for dataset in client.datasets()]
    assert [row["prompt"] for row in client.rows("pushed", offset=1, limit=5)] == ["1+1=", "2+1="]
    client.delete_dataset("pushed")
    assert "pushed" not in [dataset.name for dataset in client.datasets()]


def test_a_malformed_file_is_refused_with_its_lines_and_nothing_is_stored(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "label": "b"}\nno json\n')
    with pytest.raises(GatewayError) as error:
        client.push_dataset("bad", file)
    assert error.value.status == 422
    assert [detail["line"] for detail in error.value.details] == [2]
    assert "bad" not in [dataset.name for dataset in client.datasets()]


def test_a_run_is_created_stopped_and_its_events_end(client: Client, tmp_path: Path, model: Path) -> None:
    client.push_dataset("for-run", rows_file(tmp_path))
    run = client.start_run(settings("client-run", "for-run", model))
    assert run.steps == 2
    assert not run.has_ended
    assert client.steps("client-run") == []
    assert client.samples("client-run") == []
    client.stop_run("client-run")
    states = [event.data["state"] for event in client.events("client-run") if event.event == "state"]
    assert states[-1] == "stopped"
    assert client.run("client-run").has_ended
    assert "client-run" in [one.run for one in client.runs()]


def test_events_resume_behind_the_one_that_was_seen_last(client: Client, tmp_path: Path, model: Path) -> None:
    client.push_dataset("for-events", rows_file(tmp_path))
    client.start_run(settings("events-run", "for-events", model))
    client.stop_run("events-run")
    events = list(client.events("events-run"))
    again = list(client.events("events-run", after_id=events[-1].id))
    assert events[-1] not in again


def test_no_separator_of_lines_inside_a_text_breaks_an_event(
    client: Client, redis_url: str, tmp_path: Path, model: Path
) -> None:
    client.push_dataset("for-separators", rows_file(tmp_path))
    client.start_run(settings("separators-run", "for-separators", model))
    error = "a\x85b\u2028c\u2029d\x1ee"
    asyncio.run(publish(redis_url, "separators-run", Event(1.0, "reward", "dropped", {"error": error})))
    client.stop_run("separators-run")
    events = [event.data["detail"] for event in client.events("separators-run") if event.event == "event"]
    assert events == [{"error": error}]


def test_a_wrong_key_is_refused_with_where_the_right_one_is(gateway: Gateway) -> None:
    with (
        Client(gateway.url, "wrong") as stranger,
        pytest.raises(GatewayError, match="api_key of the deployment's home"),
    ):
        stranger.datasets()


def test_what_does_not_exist_is_told_by_name(client: Client) -> None:
    with pytest.raises(GatewayError, match="no-such-run") as error:
        client.run("no-such-run")
    assert error.value.status == 404
    with pytest.raises(GatewayError, match="no-such-run"):
        list(client.events("no-such-run"))


@pytest.mark.parametrize("answer", ["200 OK", "307 Temporary Redirect", "502 Bad Gateway"])
def test_what_is_no_gateway_is_told_by_its_address(answer: str) -> None:
    with (
        answering(f"HTTP/1.1 {answer}\r\nContent-Length: 6\r\n\r\n<html>") as url,
        Client(url, "key") as client,
        pytest.raises(SluiceError, match=rf"{url}.* correct gateway.url"),
    ):
        client.runs()


def test_without_a_gateway_the_error_says_how_to_start_one() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}", "key") as client,
        pytest.raises(GatewayUnreachable, match="sluice up"),
    ):
        client.status()


def test_the_public_names_can_be_imported() -> None:
    assert public.Client is Client
    assert {getattr(public, name).__name__ for name in public.__all__} == set(public.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = public.Nonsense
