"""Health says NOT_SERVING while the engine answers nothing, as when a device hangs."""

from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import serve.server
from distkv_jax.errors import ConfigError
from serve.server import INFERENCE
from serve.settings import ServerSettings
from tests.serve.running import Loop, Running, paused, running, wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_follows_an_engine_that_hangs_and_comes_back(
    loop: Loop,
    shared: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(serve.server, "WATCH_S", 0.02)
    with running(loop, shared.llm, step_timeout_s=0.3) as service:
        stub: Any = health_pb2_grpc.HealthStub(service.channel)

        def status() -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE)).status

        assert status() == SERVING
        with paused(shared.llm):
            wait_until(lambda: status() == NOT_SERVING, "health says so")
        wait_until(lambda: status() == SERVING, "health says that it came back")

    assert "no step has ended for 0.3 s, health is NOT_SERVING" in caplog.messages
    assert any(text.startswith("the engine answered after ") for text in caplog.messages)


def test_the_time_must_be_one() -> None:
    with pytest.raises(ConfigError, match="step_timeout_s=0 must be above 0"):
        ServerSettings(step_timeout_s=0)
