"""Which hosts only this machine reaches."""

import pytest

from shared.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_hosts_of_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway", "localhost.example"])
def test_hosts_that_others_reach(host: str) -> None:
    assert not is_loopback(host)
