"""Who watches sees where every block is, by gRPC and by HTTP; the engine is read once for all."""

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import serve.live.routes
import serve.live.watch
from distkv_jax.engine.engine import Engine
from distkv_jax.errors import Unavailable
from distkv_jax.llm import LLM
from serve.client import AsyncClient, Client
from serve.live.snapshot import Reading, read_engine
from serve.live.watch import HISTORY_POINTS, MAX_WATCHERS
from serve.proto.distkv.v1 import control_pb2 as pb
from tests.serve.running import (
    TIMEOUT_S,
    Loop,
    Running,
    failure_of,
    in_background,
    paused,
    request_of,
    running,
    wait_until,
)

ALICE, ADMIN = (f"{name}-0123456789abcdef" for name in ("alice", "admin"))


@pytest.fixture(scope="session")
def shared_watched(loop: Loop, llm: LLM) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DISTKV_API_KEY", raising=False)
        with running(loop, llm, http_port=0) as service:
            yield service


@pytest.fixture
def watched(shared_watched: Running) -> Iterator[Running]:
    yield shared_watched
    wait_until(lambda: not shared_watched.server.dispatcher.quota.num_requests, "requests end")
    wait_until(lambda: num_watchers(shared_watched) == 0, "watchers leave")


@pytest.fixture
def guarded(loop: Loop, llm: LLM, tmp_path: Path) -> Iterator[Running]:
    file = tmp_path / "keys"
    file.write_text(f"alice {ALICE}\nops {ADMIN} admin\n")
    with running(loop, llm, http_port=0, api_key_file=str(file)) as service:
        yield service


def num_watchers(service: Running) -> int:
    return service.server.watch._num_watchers


def watching(service: Running, interval_s: float = 0.1) -> Any:
    return service.control.Watch(pb.WatchRequest(interval_s=interval_s), timeout=TIMEOUT_S)


@contextlib.contextmanager
def asked_at(
    service: Running, path: str, key: str | None = None, method: str = "GET"
) -> Iterator[http.client.HTTPConnection]:
    """Ask the HTTP door, and do not wait for its answer."""
    assert service.server.http_port is not None
    connection = http.client.HTTPConnection("127.0.0.1", service.server.http_port, timeout=20)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    connection.request(method, path, headers=headers)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def asked(service: Running, path: str, key: str | None = None) -> Iterator[Any]:
    """Ask the HTTP door."""
    with asked_at(service, path, key) as connection:
        yield connection.getresponse()


def event_of(answer: Any) -> Any:
    """Read the next event of a stream."""
    line, end = answer.readline().decode(), answer.readline()
    assert line.startswith("data: ") and end == b"\n"
    return json.loads(line.removeprefix("data: "))


@contextlib.contextmanager
def long_requests(service: Running, count: int) -> Iterator[None]:
    """Have requests that run until they are no longer needed."""
    calls = [
        service.inference.GenerateStream(
            request_of(
                *range(5, 105), request_id=f"long-{number}", max_tokens=150, ignore_eos=True
            ),
            timeout=TIMEOUT_S,
        )
        for number in range(count)
    ]
    readers = [in_background(list, call) for call in calls]
    try:
        yield
    finally:
        for call in calls:
            call.cancel()
        for reader in readers:
            with contextlib.suppress(grpc.RpcError):
                reader.result(TIMEOUT_S)


def check_adds_up(snapshot: pb.Snapshot) -> None:
    """See that states, requests and debts tell the same of every block."""
    for one in snapshot.instances:
        assert one.total == one.free + one.held + one.reserved == 48
        assert one.held == sum(row.blocks.get(one.instance, 0) for row in snapshot.requests)
        assert one.lent == sum(debt.num_blocks for debt in one.debts)
        away = [row for row in snapshot.requests if row.home != one.instance]
        assert one.lent == sum(row.blocks.get(one.instance, 0) for row in away)
        debts = [debt for other in snapshot.instances for debt in other.debts]
        owed = [debt.num_blocks for debt in debts if debt.debtor == one.instance]
        assert one.borrowed == sum(owed)


def test_a_request_without_room_at_home_is_on_several_instances_and_debts_add_up(
    watched: Running,
) -> None:
    with long_requests(watched, 3):
        snapshot = pb.Snapshot()
        for snapshot in watching(watched):
            check_adds_up(snapshot)
            if (
                any(len(row.blocks) == 2 for row in snapshot.requests)
                and len(snapshot.requests) == 3
            ):
                break

    assert sum(one.lent for one in snapshot.instances) > 0
    assert (snapshot.model, snapshot.block_size) == ("small", 8)
    for row in snapshot.requests:
        assert row.request_id.startswith("long-")
        assert (row.activity == pb.ACTIVITY_RUNNING) == bool(row.blocks) == row.HasField("home")
        assert row.num_prompt_tokens == 100
        if row.blocks:
            # A token in flight may have a block before it is read.
            held = sum(row.blocks.values())
            assert held <= (100 + row.num_tokens + 2) // 8 + 1


def test_http_tells_the_same_as_grpc(watched: Running) -> None:
    with (
        long_requests(watched, 1),
        asked(watched, "/live?interval=0.1") as answer,
    ):
        assert answer.getheader("content-type").startswith("text/event-stream")
        assert answer.getheader("cache-control") == "no-store"
        # The first may be one that was just taken for somebody else.
        event_of(answer)
        view = event_of(answer)
        while not any(row["blocks"] for row in view["requests"]):
            view = event_of(answer)

    assert len(view["requests"]) == 1, view["requests"]
    (row,) = view["requests"]
    assert (row["request_id"], row["activity"]) == ("long-0", "running")
    for index, one in enumerate(view["instances"]):
        assert one["held"] == sum(count for at, count in row["blocks"] if at == index)
    assert set(view["totals"]) == {field.name for field in pb.Totals.DESCRIPTOR.fields}
    assert set(view["now"]) == {field.name for field in pb.Point.DESCRIPTOR.fields}


def test_tokens_of_a_whole_answer_are_seen_before_it_is_there(watched: Running) -> None:
    message = request_of(5, request_id="whole", max_tokens=200, ignore_eos=True)
    answer = watched.inference.Generate.future(message, timeout=TIMEOUT_S)
    counts = []
    for snapshot in watching(watched):
        counts += [row.num_tokens for row in snapshot.requests]
        if answer.done():
            break

    assert [count for count in counts if 1 < count < 200], counts


def test_the_first_picture_has_the_history_and_later_ones_what_is_new(watched: Running) -> None:
    pictures = watching(watched)
    first = next(pictures)
    while not (later := next(pictures)).history:
        pass
    times = [point.time for point in (*first.history, *later.history)]

    # It was kept before anybody watched.
    wait_until(lambda: len(next(watching(watched)).history) >= 2, "a history without a watcher")
    assert times == sorted(set(times))
    assert len(later.history) == 1
    assert len(first.history) <= HISTORY_POINTS


@pytest.mark.parametrize("interval", [0.09, 60.1, -1.0, float("nan"), float("inf"), 0.0])
def test_an_interval_out_of_bounds_is_refused(watched: Running, interval: float) -> None:
    text = f"interval_s={interval:g} must be within 0.1..60"
    failure = failure_of(
        watched.control.Watch, pb.WatchRequest(interval_s=interval), timeout=TIMEOUT_S
    )
    assert (failure.code, failure.text) == (grpc.StatusCode.INVALID_ARGUMENT, text)
    assert failure.fields == {"interval_s": text}

    with asked(watched, f"/live?interval={interval}") as answer:
        assert answer.status == 400
        told = json.load(answer)["error"]["message"]
    assert told == ("interval='nan' must be a number of seconds" if interval != interval else text)


def test_an_interval_that_is_no_number_is_refused(watched: Running) -> None:
    with asked(watched, "/live?interval=soon") as answer:
        assert answer.status == 400
        error = json.load(answer)["error"]
    assert error["message"] == "interval='soon' must be a number of seconds"


def test_many_watchers_cost_one_reading_and_none_costs_none(
    watched: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[float] = []

    def counted(engine: Engine) -> Reading:
        readings.append(time.monotonic())
        return read_engine(engine)

    monkeypatch.setattr(serve.live.watch, "read_engine", counted)
    calls = [watching(watched, 0.2) for _ in range(20)]
    for _ in range(4):
        for call in calls:
            next(call)
    taken_s = readings[-1] - readings[0]
    # One for each multiple of the interval, one for those who came before the first.
    assert len(readings) <= taken_s / 0.2 + 4

    for call in calls:
        call.cancel()
    wait_until(lambda: num_watchers(watched) == 0, "watchers leave")
    count, ticks = len(readings), watched.server.watch._num_points
    wait_until(lambda: watched.server.watch._num_points >= ticks + 2, "the history goes on")
    assert len(readings) == count


def test_a_reader_of_http_that_leaves_is_forgotten(watched: Running) -> None:
    with asked(watched, "/live?interval=0.1") as answer:
        event_of(answer)
        assert num_watchers(watched) == 1
    wait_until(lambda: num_watchers(watched) == 0, "it is forgotten")


def test_too_many_watchers_are_refused(watched: Running) -> None:
    calls = [watching(watched, 60.0) for _ in range(MAX_WATCHERS)]
    for call in calls:
        next(call)
    failure = failure_of(watched.control.Watch, pb.WatchRequest(), timeout=TIMEOUT_S)
    for call in calls:
        call.cancel()

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.text == f"{MAX_WATCHERS} are watching, limit {MAX_WATCHERS}"


def test_only_admins_watch_and_the_page_is_open_and_empty(guarded: Running) -> None:
    with Client(guarded.address, api_key=ADMIN) as client:
        with contextlib.closing(client.watch(0.1)) as snapshots:
            assert len(next(snapshots).instances) == 2
    for key, status, text in (
        (None, 401, "no API key"),
        ("wrong-0123456789abcdef", 401, "is not known"),
        (ALICE, 403, "the API key of alice is not an admin's"),
    ):
        with asked(guarded, "/live", key) as answer:
            assert answer.status == status
            assert text in json.load(answer)["error"]["message"]
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        failure = failure_of(guarded.control.Watch, pb.WatchRequest(), metadata=metadata)
        assert text in failure.text
    with asked(guarded, "/live?interval=0.1", ADMIN) as answer:
        assert len(event_of(answer)["instances"]) == 2
    with asked(guarded, "/") as answer:
        assert answer.status == 200
        policy = answer.getheader("content-security-policy")
        assert b"small" not in answer.read()
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    with asked(guarded, "/page/../routes.py") as answer:
        assert answer.status == 401


def test_a_server_that_stops_says_so_and_does_not_wait_for_watchers(loop: Loop, llm: LLM) -> None:
    with running(loop, llm, http_port=0) as service:
        pictures = service.client.watch(60.0)
        next(pictures)
        with asked(service, "/live?interval=60") as answer:
            event_of(answer)
            begin = time.monotonic()
            service.on_loop(service.server.drain, 20.0)
            assert service.wait()
            assert time.monotonic() - begin < 2.0
            assert answer.read() == b""
        with pytest.raises(Unavailable, match="the server was stopped"):
            next(pictures)


def test_watchers_of_an_engine_that_hangs_do_not_hold_the_end_up(loop: Loop, llm: LLM) -> None:
    with running(loop, llm, http_port=0) as service, paused(llm):
        picture = in_background(next, service.client.watch(60.0))
        with asked_at(service, "/live?interval=60") as connection:
            wait_until(lambda: num_watchers(service) == 2, "both wait for a picture")
            begin = time.monotonic()
            service.on_loop(service.server.stop_now)
            service.wait()
            # gRPC has two seconds for last words, of which it needs none here.
            assert time.monotonic() - begin < 2.0
            assert connection.getresponse().status == 503
        with pytest.raises(Unavailable, match="the server was stopped"):
            picture.result(TIMEOUT_S)
        assert num_watchers(service) == 0


def test_a_reader_of_http_that_reads_no_more_loses_its_place(
    watched: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.live.routes, "WRITE_S", 0.3)
    # More than the buffers between take.
    monkeypatch.setattr(serve.live.routes, "json_of", lambda view: "x" * 8_000_000)
    with asked_at(watched, "/live?interval=0.1"):
        wait_until(lambda: num_watchers(watched) == 1, "it watches")
        wait_until(lambda: num_watchers(watched) == 0, "it is cut off")


def test_asking_for_the_head_of_the_stream_watches_nothing(watched: Running) -> None:
    with asked_at(watched, "/live", method="HEAD") as connection:
        assert connection.getresponse().status == 405
        assert num_watchers(watched) == 0


def test_draining_is_shown(loop: Loop, llm: LLM) -> None:
    with running(loop, llm) as service, long_requests(service, 1):
        pictures = service.client.watch(0.1)
        wait_until(lambda: next(pictures).requests, "the request is seen")
        service.on_loop(service.server.drain, 20.0)
        wait_until(lambda: next(pictures).is_draining, "it is shown")


def test_the_client_of_asyncio_watches_too(watched: Running) -> None:
    async def watch() -> list[float]:
        async with AsyncClient(watched.address) as client:
            times = []
            async with contextlib.aclosing(client.watch(0.1)) as snapshots:
                async for snapshot in snapshots:
                    times.append(snapshot.time)
                    if len(times) == 3:
                        break
            return times

    times = asyncio.run(watch())
    assert times == sorted(set(times))
