"""Steps -> trackio, a dashboard that lives on this machine: `trackio show --project NAME`."""

import importlib
from collections.abc import Sequence
from typing import Any

from services.trainer.sinks.position import Position, PositionFile
from services.trainer.sinks.sink import Place, Row
from shared.errors import SluiceError

NAME = "trackio"


class Trackio:
    """One run there for one run here; a new trainer goes on with it, from the step that trackio has.

    trackio gathers rows in memory and tells of no failure. So each call is a session of its own, whose end writes them
    down, and the begin of the next one tells what has arrived. After Redis has lost steps, a new run gets all rows.
    """

    def __init__(self, place: Place, newest: int) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        self._place, self._file = place, PositionFile(place.folder, NAME)
        self._position = self._file.in_life(newest)
        self.last = self._held() if self._position.has_begun else 0

    def write(self, rows: Sequence[Row]) -> None:
        """See Sink."""
        session = self._session()
        for row in rows:
            session.log(dict(row.metrics), step=row.step)
        session.finish()
        if not self._position.has_begun:
            self._position = Position(0, self._position.life, True)
        self.last = self._held()
        self._position = Position(self.last, self._position.life, True)
        self._file.write(self._position)
        if self.last < rows[-1].step:
            raise SluiceError(f"trackio has steps up to {self.last} of {rows[-1].step}; see its warnings above")

    def close(self) -> None:
        """See Sink."""

    def _held(self) -> int:
        """The last step that trackio has; 0 without one."""
        session = self._session()
        held = int(session._next_step) - 1
        session.finish()
        return max(held, 0)

    def _session(self) -> Any:
        suffix = f"-{self._position.life}" if self._position.life > 1 else ""
        return self._trackio.init(
            project=self._place.project,
            name=self._place.name + suffix,
            group=self._place.name,
            config=dict(self._place.config),
            resume="allow" if self._position.has_begun else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
