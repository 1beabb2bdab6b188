"""What can be said of an engine's process without SGLang; test_engine.py has the rest."""

import socket

import pytest

from services.rollout.launch_engine import EngineDied, check_port
from tests.conftest import free_port


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineDied, match=f"cannot listen on 127.0.0.1:{port}"):
            check_port("127.0.0.1", port)


def test_a_free_port_is_fine() -> None:
    check_port("127.0.0.1", free_port())
