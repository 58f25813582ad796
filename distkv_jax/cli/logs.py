"""How a command's log is written: lines for people, or JSON for collectors of logs."""

import dataclasses
import logging
import sys
from typing import Literal

OURS = ("distkv", "distkv_jax", "serve")
"""Loggers whose level can be set; what libraries log below a warning is left out."""
JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LogSettings:
    """Settings of the log, which goes to standard error.

    Attributes:
        log_format: How lines are written: for people, or one JSON object each.
        log_level: What is logged at least; info has a line for every request that ends.
    """

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def configure_logs(settings: LogSettings) -> None:
    """Set the process's log up; of all modules only a command may."""
    from serve.observe.context import RequestIdFilter

    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(formatter_of(settings))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def formatter_of(settings: LogSettings) -> logging.Formatter:
    """Make what writes a line."""
    if settings.log_format == "text":
        return TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        rename_fields=JSON_NAMES,
    )


class TextFormatter(logging.Formatter):
    """Adds what was logged besides the message, as `name=value`."""

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Write one line; a stack trace comes below it."""
        more = [
            f"{name}={one_line(value)}"
            for name, value in vars(record).items()
            if name not in self._standard
        ]
        return " ".join([super().formatMessage(record), *more])


def one_line(value: object) -> object:
    """Quote a text that would break its line, or move a terminal's cursor."""
    return repr(value) if isinstance(value, str) and not value.isprintable() else value
