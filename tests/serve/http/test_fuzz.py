"""Whatever schemathesis makes of the OpenAPI document is answered as the document says."""

import asyncio
import logging

import pytest

from benchmarks.fuzz_grpc import leftovers
from benchmarks.fuzz_http import fuzz
from tests.serve.running import Running

SECONDS = 6
"""Of the gate; the benchmark takes as many as one likes."""


def test_random_requests_are_answered_as_documented(
    door: Running, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    code = fuzz(f"http://127.0.0.1:{door.server.http_port}", SECONDS, seed=1)

    assert code == 0, capfd.readouterr().out
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert door.loop.run(asyncio.wait_for(leftovers(door.address), 20)) == ""
