import socket

import pytest

from services.rollout.check_attached import EngineUnfit
from services.rollout.reach_files import check_reach, is_on_this_host
from shared.run_settings import WeightSettings

AWAY = "http://192.0.2.7:30000"
"""An address for documentation, which no machine has (RFC 5737)."""


@pytest.mark.parametrize("url", ["http://127.0.0.1:30000", "http://[::1]:30000", f"http://{socket.gethostname()}:1"])
def test_addresses_and_names_of_this_machine_are_here(url: str) -> None:
    assert is_on_this_host(url)


@pytest.mark.parametrize("url", [AWAY, "http://nobody.invalid:30000"])
def test_other_addresses_and_names_that_are_not_found_are_elsewhere(url: str) -> None:
    assert not is_on_this_host(url)


@pytest.mark.parametrize(
    "weights",
    [
        WeightSettings(transport="delta"),
        WeightSettings(transport="delta", folder="/mnt/versions"),
        WeightSettings(transport="disk"),
        WeightSettings(transport="disk", folder="memory://versions"),
    ],
)
async def test_an_engine_of_another_host_is_refused_where_only_this_one_has_the_files(weights: WeightSettings) -> None:
    with pytest.raises(EngineUnfit, match=r"on another host .* set weights\.local_folder"):
        await check_reach(AWAY, weights)
    await check_reach("http://127.0.0.1:30000", weights)


async def test_memory_of_this_host_is_for_engines_of_this_host() -> None:
    weights = WeightSettings(transport="ipc")
    with pytest.raises(EngineUnfit, match=r"on another host .* set weights\.transport"):
        await check_reach(AWAY, weights)
    await check_reach("http://127.0.0.1:30000", weights)


@pytest.mark.parametrize(
    "weights",
    [
        WeightSettings(),
        WeightSettings(transport="delta", local_folder="/mnt/copies"),
        WeightSettings(transport="disk", folder="/mnt/versions"),
    ],
)
async def test_it_is_given_versions_over_the_network_and_in_folders_that_somebody_chose(
    weights: WeightSettings,
) -> None:
    await check_reach(AWAY, weights)
