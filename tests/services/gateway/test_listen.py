"""Binding: loopback without a key, everything else with one, a port in use with a sentence."""

import pytest

from benchmarks.free_ports import free_port
from services.gateway.listen import listen
from shared.errors import SettingsError, SluiceError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_a_host_that_others_reach_needs_a_key_of_ones_own(host: str) -> None:
    with pytest.raises(SettingsError, match=r"gateway\.api_key"):
        listen(host, free_port(), has_own_key=False)
    if host == "0.0.0.0":
        listen(host, free_port(), has_own_key=True).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_loopback_needs_no_key_and_a_port_in_use_is_named(host: str) -> None:
    port = free_port()
    with listen(host, port, has_own_key=False), pytest.raises(SluiceError, match=f"port {port} on {host} is in use"):
        listen(host, port, has_own_key=False)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SluiceError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", free_port(), has_own_key=True)
