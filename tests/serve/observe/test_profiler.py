"""A trace is taken on demand, one at a time, while requests go on, and only where allowed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jax
import pytest

from distkv_jax.cli.main import main
from distkv_jax.llm import LLM
from serve.proto.distkv.v1 import control_pb2 as pb
from tests.serve.running import (
    Loop,
    Running,
    failure_of,
    in_background,
    request_of,
    running,
    wait_until,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def profiled(loop: Loop, llm: LLM, folder: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DISTKV_API_KEY", raising=False)
        with running(loop, llm, profile_dir=str(folder)) as service:
            yield service


def test_a_trace_has_the_steps_and_is_not_taken_by_the_loop(
    profiled: Running, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noting(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            threads.append(threading.get_ident())
            real(*arguments, **named)

        return call

    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, noting(getattr(jax.profiler, name)))
    first = profiled.control.Profile(pb.ProfileRequest(duration_s=0.1)).folder
    profiling = in_background(profiled.client.profile, 0.5)
    while not profiling.done():
        profiled.inference.Generate(request_of(1, 2, 3, max_tokens=8, ignore_eos=True))

    second = profiling.result()
    assert first != second and Path(second).parent == folder
    (trace,) = Path(second).rglob("*.xplane.pb")
    assert b"step" in trace.read_bytes()
    # Both take long.
    assert len(threads) == 4 and profiled.on_loop(threading.get_ident) not in threads


def test_one_at_a_time(profiled: Running) -> None:
    call = profiled.control.Profile.future(pb.ProfileRequest(duration_s=60))
    wait_until(lambda: profiled.server._profiler._task is not None, "it begins")
    failure = failure_of(profiled.control.Profile, pb.ProfileRequest(duration_s=1))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.text == "a trace is being taken, one at a time" and failure.retry_s == 1
    call.cancel()
    # Whoever leaves ends the trace.
    wait_until(lambda: profiled.server._profiler._task is None, "it ends")
    assert profiled.control.Profile(pb.ProfileRequest(duration_s=0.1)).folder


@pytest.mark.parametrize("duration_s", [0.0, 0.09, 60.5, float("nan"), float("inf")])
def test_durations_have_limits(profiled: Running, duration_s: float) -> None:
    failure = failure_of(profiled.control.Profile, pb.ProfileRequest(duration_s=duration_s))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == {"duration_s": f"duration_s={duration_s:g} must be within 0.1..60"}


def test_a_server_without_a_folder_says_which_flag_it_needs(service: Running) -> None:
    failure = failure_of(service.control.Profile, pb.ProfileRequest())
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "--profile-dir" in failure.text


def test_a_server_that_stops_ends_the_trace(loop: Loop, llm: LLM, tmp_path: Path) -> None:
    with running(loop, llm, profile_dir=str(tmp_path)) as service:
        call = service.control.Profile.future(pb.ProfileRequest(duration_s=60))
        wait_until(lambda: service.server._profiler._task is not None, "it begins")
        service.on_loop(service.server.drain)
        assert service.wait()
        assert call.result(timeout=10).folder
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_trace_that_cannot_be_written_does_not_hold_the_end_up(
    loop: Loop,
    llm: LLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("serve.server.TRACE_S", 0.2)
    stop_trace, may_end = jax.profiler.stop_trace, threading.Event()

    def hang() -> None:
        # The process does not wait for it when it exits.
        assert threading.current_thread().daemon
        may_end.wait()
        stop_trace()

    monkeypatch.setattr(jax.profiler, "stop_trace", hang)
    with running(loop, llm, profile_dir=str(tmp_path)) as service:
        profiler = service.server._profiler
        call = service.control.Profile.future(pb.ProfileRequest(duration_s=60))
        wait_until(lambda: list(tmp_path.iterdir()), "it begins")
        service.on_loop(service.server.drain)
        assert service.wait()
        assert profiler._task is not None
        wait_until(call.done, "its caller is told")
        may_end.set()
        wait_until(lambda: profiler._task is None, "it ends")
    assert "a trace was not written within 0.2 s, it is lost" in caplog.messages


def test_the_command_prints_the_folder(
    profiled: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "profile", "--seconds", "0.1", "--server", profiled.address]) == 0
    assert list(Path(capsys.readouterr().out.strip()).rglob("*.xplane.pb"))
