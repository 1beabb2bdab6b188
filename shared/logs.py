"""One structured line an event: time, level, service, event, then ids and numbers as key=value or as JSON."""

import json
import logging
import sys
from typing import Any


class Log:
    """A logger whose calls read `log.info("group_released", run=..., group=...)`."""

    def __init__(self, service: str) -> None:
        self._logger = logging.getLogger(f"sluice.{service}")

    def debug(self, event: str, **fields: Any) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._logger.error(event, extra={"fields": fields}, exc_info=True)


class _Lines(logging.Formatter):
    def __init__(self, service: str, as_json: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._service, self._as_json = service, as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            head = {"time": record.created, "level": record.levelname.lower(), "service": self._service}
            tail = {"trace": trace} if trace else {}
            return json.dumps({**head, "event": record.getMessage(), **fields, **tail}, default=str)
        pairs = " ".join(f"{name}={_short(value)}" for name, value in fields.items())
        time = self.formatTime(record, self.datefmt)
        line = f"{time} {record.levelname:<7} {self._service:<9} {record.getMessage()} {pairs}"
        return f"{line}\n{trace}" if trace else line


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    text = str(value)
    return json.dumps(text) if " " in text or not text else text


def configure(service: str, level: str = "info", as_json: bool = False) -> Log:
    """Send this process's logs to standard error, one line an event; called once, at the start of a service."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(service, as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sluice").setLevel(level.upper())
    return Log(service)
