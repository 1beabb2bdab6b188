"""Port checks against real sockets."""

import os
import socket
from collections.abc import Iterator

import pytest

from benchmarks.free_ports import free_port
from deploy.ports import check_ports, holder_of
from deploy.services import PortUse
from shared.errors import SluiceError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield server.getsockname()[1]


def test_a_taken_port_is_told_with_its_holder_and_the_setting_to_change(taken: int) -> None:
    with pytest.raises(SluiceError) as error:
        check_ports([PortUse("gateway.port", "127.0.0.1", taken)])
    assert f"port {taken} is in use by process {os.getpid()} (" in str(error.value)
    assert "sluice up --set gateway.port=" in str(error.value)
    assert "SLUICE_GATEWAY__PORT" in str(error.value)


def test_two_services_on_one_port_are_told_by_their_settings() -> None:
    port = free_port()
    with pytest.raises(SluiceError, match=f"gateway.port and router.port both come to port {port}"):
        check_ports([PortUse("gateway.port", "127.0.0.1", port), PortUse("router.port", "127.0.0.1", port)])


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(SluiceError, match=r"cannot listen on 192.0.2.1:\d+ .*; correct gateway.host or gateway.port"):
        check_ports([PortUse("gateway.port", "192.0.2.1", free_port())])


def test_ports_of_many_engines_beyond_the_last_one_are_told() -> None:
    with pytest.raises(SluiceError, match=r"engine.port of the last engines comes to 65536.*; write a smaller one"):
        check_ports([PortUse("engine.port", "127.0.0.1", 65536)])


def test_free_ports_pass_and_nobody_holds_them() -> None:
    port = free_port()
    check_ports([PortUse("gateway.port", "127.0.0.1", port), PortUse("router.port", "0.0.0.0", free_port())])
    assert holder_of(port) == ""
