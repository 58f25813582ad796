"""No bytes bring the server down, are answered with UNKNOWN, or leave anything behind."""

import asyncio
import logging

import pytest

from benchmarks.fuzz_grpc import ALLOWED, fuzz, leftovers
from serve.errors import TABLE
from tests.serve.running import Code, Running

COUNT = 600
"""Calls of the gate; the benchmark makes as many as one likes."""


def test_random_requests_are_answered_from_the_table(
    service: Running, caplog: pytest.LogCaptureFixture
) -> None:
    codes = service.loop.run(fuzz(service.address, COUNT, seed=1))

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert codes.total() == COUNT
    assert set(codes) <= ALLOWED
    assert {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND} <= set(codes)
    assert service.loop.run(asyncio.wait_for(leftovers(service.address), 20)) == ""


def test_what_is_allowed_is_of_the_table() -> None:
    assert {Code.UNKNOWN, Code.INTERNAL}.isdisjoint(ALLOWED)
    assert ALLOWED - {Code.OK} <= {row.code for row in TABLE.values()}
