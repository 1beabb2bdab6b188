"""A deployment's settings -> a client of its gateway: the address and the key that `sluice up` left in its home."""

from pathlib import Path

from deploy.services import local_gateway_url
from deploy.supervisor_state import read_state
from shared.deployment import Deployment
from shared.errors import SluiceError
from sluice.client import Client


def connect(deployment: Deployment, timeout_s: float = 30.0) -> Client:
    """A client for the deployment; SluiceError if it does not run here, or there is no key to be found."""
    return Client(gateway_url(deployment), api_key(deployment), timeout_s)


def gateway_url(deployment: Deployment) -> str:
    """gateway.url if set, else where the supervisor of this home runs it, else host and port of the settings.

    Raises:
        SluiceError: a supervisor of this home has ended; what answers at a port of the settings is another deployment.
    """
    state = None if deployment.gateway.url else read_state(deployment.paths.home)
    if state is None:
        return local_gateway_url(deployment)
    if not state.alive:
        raise SluiceError(
            f"Sluice is not running here ({deployment.paths.home.absolute()}); start it with `sluice up`,"
            " or set gateway.url (SLUICE_GATEWAY__URL) to one that runs elsewhere"
        )
    return state.gateway_url


def key_file(deployment: Deployment) -> Path:
    """Where the gateway keeps the key that it made on its first start."""
    return deployment.paths.home / "api_key"


def api_key(deployment: Deployment) -> str:
    """The configured key, else the one in the home."""
    if deployment.gateway.api_key:
        return deployment.gateway.api_key
    try:
        return key_file(deployment).read_text("utf-8").strip()
    except FileNotFoundError:
        raise SluiceError(
            f"Sluice was never started in {deployment.paths.home} (there is no {key_file(deployment)});"
            " run `sluice up` first, or set SLUICE_GATEWAY__URL and SLUICE_GATEWAY__API_KEY"
        ) from None
    except OSError as error:
        raise SluiceError(f"{key_file(deployment)} cannot be read ({error.strerror}); set gateway.api_key") from error
