"""A record of the log is one line, whatever is in it."""

import logging

import pytest

from distkv_jax.cli.logs import LogSettings, formatter_of


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("messages[0].content", "messages[0].content"),
        ("x\n2026 CRITICAL", "'x\\n2026 CRITICAL'"),
        ("\x1b[31m", "'\\x1b[31m'"),
        ("\u2028", "'\\u2028'"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_a_value_that_would_break_its_line_is_quoted(value: object, written: str) -> None:
    record = logging.makeLogRecord({"msg": "request ended", "field": value})

    assert formatter_of(LogSettings()).format(record).endswith(f": request ended field={written}")
