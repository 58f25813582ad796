"""A process that follows notices a leader that is cut off, and finds it again soon."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.network_relay import Relay
from distkv_jax.errors import ConfigError, Unavailable
from serve.launch.local import free_port_pair
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.follow import connect, join
from serve.world.leader import Leader
from tests.world.running import TOKEN, settings_of

SILENT_S = 1.0


@pytest.fixture
def port() -> Iterator[int]:
    """Of a leader that gathers three, of which one never comes."""
    settings = settings_of(
        free_port_pair(), num_hosts=3, heartbeat_timeout_s=SILENT_S, join_timeout_s=15
    )
    leader = Leader(
        settings, {}, TOKEN, num_slots=4, vocab_size=8, platform="cpu", on_lost=lambda error: None
    )

    def gather() -> None:
        with contextlib.suppress(ConfigError):
            leader.gather()

    gathering = threading.Thread(target=gather)
    gathering.start()
    yield settings.port
    leader.close()
    gathering.join()


def test_who_waits_to_join_notices_that_the_leader_is_cut_off(port: int) -> None:
    with Relay(("127.0.0.1", 0), ("127.0.0.1", port)) as relay:
        own = settings_of(
            relay.port, rank=1, num_hosts=3, heartbeat_timeout_s=SILENT_S, join_timeout_s=60
        )
        with connect(own) as channel, ThreadPoolExecutor(1) as threads:
            joining = threads.submit(join, pb_grpc.WorldStub(channel), own, {}, TOKEN)
            # Longer than its patience: it asks whether the leader is there, and is answered.
            with pytest.raises(TimeoutError):
                joining.result(9 * SILENT_S)
            begin = time.monotonic()
            relay.stall()
            with pytest.raises(Unavailable, match="rank 1 could not join at "):
                joining.result(20)
            assert time.monotonic() - begin < 5 * SILENT_S


def test_a_leader_that_is_not_there_is_looked_for_again_and_again() -> None:
    times: list[float] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        own = settings_of(listening.getsockname()[1], rank=1, join_timeout_s=60)

        def turn_away() -> None:
            for _ in range(7):
                listening.accept()[0].close()
                times.append(time.monotonic())

        with connect(own) as channel:
            turning = threading.Thread(target=turn_away)
            turning.start()
            call = pb_grpc.WorldStub(channel).Join.future(pb.JoinRequest(), wait_for_ready=True)
            turning.join(30)
            call.cancel()
    assert times[-1] - times[-2] < 4


def test_a_leader_that_has_gone_is_not_waited_for_by_who_comes_again() -> None:
    own = settings_of(free_port_pair(), rank=1, join_timeout_s=60)
    with connect(own) as channel, pytest.raises(Unavailable, match="rank 1 could not join at "):
        begin = time.monotonic()
        try:
            join(pb_grpc.WorldStub(channel), own, {}, TOKEN, is_again=True)
        finally:
            assert time.monotonic() - begin < 10
