"""Groups that cannot be made."""

import gc
import socket
from collections.abc import Iterator

import pytest

from services.trainer.rendezvous import Communicator, MeetingPoint, Member, forget, in_thread


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def test_nobody_can_wait_where_a_group_could_not_be_made(without_garbage_collection: None) -> None:
    meeting = MeetingPoint("127.0.0.1")
    address, failure = (meeting.host, meeting.port), None
    with socket.create_connection(address, 1):
        pass
    try:
        await in_thread(lambda: Communicator(meeting, "group", [Member("engine", "a", 1)], "gloo", 0.2))
    except RuntimeError as error:
        failure = str(error)
        forget(error)
    meeting.close()
    assert failure is not None
    assert "timeout" in failure
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 1)
