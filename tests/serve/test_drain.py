"""A server that is stopped finishes what it accepted, refuses the rest, and says how it went."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distkv_jax.cli.serve import on_signal
from distkv_jax.errors import DistKVError, EngineStopped, Unavailable
from serve.client import Client
from serve.settings import ServerSettings
from tests.serve.running import (
    TIMEOUT_S,
    Loop,
    Running,
    failure_of,
    in_background,
    paused,
    request_of,
    running,
    wait_submitted,
    wait_until,
)

ROOT = Path(__file__).parents[2]
READY = "distkv.v1.Inference"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ENDLESS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}


def test_drain_under_load_loses_no_accepted_request(loop: Loop, shared: Running) -> None:
    service = Running(loop, shared.llm, ServerSettings(port=0, http_port=None))
    prompts = [[token] * (1 + token % 9) for token in range(3, 33)]
    with paused(shared.llm):
        calls = [
            service.inference.Generate.future(
                request_of(*prompt, max_tokens=5, ignore_eos=True), timeout=TIMEOUT_S
            )
            for prompt in prompts
        ]
        wait_submitted(service, len(prompts))
        assert service.client.drain() == len(prompts)
        refused = failure_of(service.inference.Generate, request_of(5))
    answers = [call.result() for call in calls]

    assert service.wait()
    assert all(len(answer.outputs[0].token_ids) == 5 for answer in answers)
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.text == "the server is being stopped, it takes no more requests"
    assert refused.retry_s == 1.0
    service.client.close()
    service.channel.close()


def test_health_is_watched_until_the_end(loop: Loop, shared: Running) -> None:
    with running(loop, shared.llm) as service:
        health: Any = health_pb2_grpc.HealthStub(service.channel)
        seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def watch() -> None:
            try:
                for answer in health.Watch(health_pb2.HealthCheckRequest(service=READY)):
                    seen.put(answer.status)
            except grpc.RpcError as error:
                seen.put(error)

        threading.Thread(target=watch, daemon=True).start()
        assert seen.get(timeout=TIMEOUT_S) == SERVING
        stream = service.client.stream([5], ENDLESS)
        next(stream)
        service.client.drain()

        assert seen.get(timeout=TIMEOUT_S) == NOT_SERVING
        # Who drains is not dead.
        assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        assert service.client.load().is_draining
        *_, last = stream
        assert last.finished
        assert service.wait()


@pytest.mark.parametrize("how", ["the grace is over", "stopped at once"])
def test_what_does_not_finish_is_cut_off_with_a_status(
    loop: Loop, shared: Running, how: str
) -> None:
    with running(loop, shared.llm) as service:
        stream = service.client.stream([5], ENDLESS)
        next(stream)
        waits = in_background(list, stream)
        with paused(shared.llm):
            service.client.drain(0.01 if how == "the grace is over" else None)
            if how == "stopped at once":
                # Asked for again, as by a signal after a call, a drain changes nothing.
                service.client.drain()
                assert not waits.done()
                loop.call_soon_threadsafe(service.server.stop_now)
            with pytest.raises(Unavailable, match="the server was stopped"):
                waits.result(TIMEOUT_S)

        assert not service.wait()
    wait_until(lambda: not shared.llm.pool().placement, "its blocks are free")


def test_a_wrong_grace_is_refused(shared: Running) -> None:
    with pytest.raises(DistKVError, match="grace_s=nan must be within 0..86400"):
        shared.client.drain(float("nan"))
    assert not shared.client.load().is_draining


def test_a_server_whose_engine_stopped_stops(
    loop: Loop, shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(loop, shared.llm) as service:

        def stopped(_: object) -> None:
            raise EngineStopped("the engine takes no requests: it failed: a bug")

        thread = types.SimpleNamespace(call_soon=stopped)
        # Of this server alone: others use the same engine.
        monkeypatch.setattr(service.server.dispatcher, "llm", types.SimpleNamespace(thread=thread))
        assert service.wait()


def start(*flags: str) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "tests"),
    }
    code = "import sys; from distkv_jax.cli import main; sys.exit(main())"
    words = "serve tiny --mesh cpu-1 --block-size 16 --num-blocks 64 --max-num-seqs 4 --no-warm-up"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words.split(), "--port", "0", "--quiet", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_command_serves_until_a_signal_and_loses_nothing() -> None:
    process = start("--max-num-batched-tokens", "64")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            r"distkv \S+ serves tiny by gRPC on (127.0.0.1:\d+) \(no TLS, no API keys\)\n", line
        )
        assert found, line
        with Client(found[1], timeout_s=120) as client:
            whole = client.generate("It was a bright day", {"max_tokens": 8, "temperature": 0})
            stream = client.stream(
                "It was a bright day", {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            *_, last = stream
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert whole.outputs[0].text
    assert last.outputs[0].text.startswith(whole.outputs[0].text)
    assert len(last.outputs[0].token_ids) == 30
    assert process.returncode == 0
    lines = errors.splitlines()
    ends = [line for line in lines if "INFO distkv.requests: request ended" in line]
    assert len(ends) == 2 and "operation=grpc.GenerateStream outcome=length" in ends[1]
    assert [line for line in lines if line not in ends] == [
        "draining: up to 30 s for accepted requests, a second signal stops at once",
        "stopped, nothing was lost",
    ]


@pytest.mark.parametrize("is_drained", [False, True], ids=["serving", "drained by a call"])
def test_the_first_signal_drains_and_the_second_stops(
    loop: Loop, shared: Running, is_drained: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(loop, shared.llm) as service:
        stream = service.client.stream([5], ENDLESS)
        next(stream)
        waits = in_background(list, stream)
        with paused(shared.llm):
            if is_drained:
                service.client.drain()
            loop.call_soon_threadsafe(lambda: on_signal(service.server, is_first=True))
            wait_until(lambda: service.server.dispatcher.is_draining, "it drains")
            assert not waits.done()
            loop.call_soon_threadsafe(lambda: on_signal(service.server, is_first=False))
            with pytest.raises(Unavailable, match="the server was stopped"):
                waits.result(TIMEOUT_S)

        assert not service.wait()
    assert "stopping at once" in capsys.readouterr().err
