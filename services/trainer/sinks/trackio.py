"""Steps -> trackio, a dashboard that lives on this machine: `trackio show --project NAME`."""

import importlib
from collections.abc import Mapping
from typing import Any


class Trackio:
    """One run there for one run here; a new trainer goes on with it."""

    def __init__(self, run: str, project: str, config: Mapping[str, Any]) -> None:
        trackio: Any = importlib.import_module("trackio")
        self._run = trackio.init(project=project, name=run, config=dict(config), resume="allow", embed=False)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
