"""Only processes that are alike come in, and who is missing or refused is named."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import pytest

from distkv_jax.engine.config import EngineConfig
from distkv_jax.errors import ConfigError
from distkv_jax.mesh import MeshConfig, for_hosts, load_mesh_config
from distkv_jax.world.fingerprint import fingerprint_of
from serve.launch.local import free_port_pair
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.follow import join
from serve.world.leader import Leader
from tests.llm.engines import GOLDEN
from tests.world.running import TOKEN, settings_of

MESH = for_hosts(load_mesh_config("cpu-2"), 2)
CONFIG = EngineConfig(num_blocks=48)


def fingerprint(mesh: MeshConfig = MESH, model: str = "llama3_gqa_tied", **changes: Any) -> Any:
    config = dataclasses.replace(CONFIG, **changes)
    return fingerprint_of("1.2", GOLDEN / model, mesh, "float32", config)


class Door(NamedTuple):
    """A leader that gathers."""

    port: int
    enter: Callable[..., pb.JoinResponse]
    gathered: Callable[[], str]


@pytest.fixture
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    port = free_port_pair()
    timeout_s = getattr(request, "param", 20)
    leader = Leader(
        settings_of(port, join_timeout_s=timeout_s),
        fingerprint(),
        TOKEN,
        num_slots=4,
        vocab_size=8,
        platform="cpu",
        on_lost=lambda error: None,
    )
    told: list[str] = []

    def gather() -> None:
        try:
            leader.gather()
            told.append("all are here")
        except ConfigError as error:
            told.append(str(error))

    gathering = threading.Thread(target=gather)
    gathering.start()

    def gathered() -> str:
        gathering.join()
        return told[0]

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.WorldStub(channel)

        def enter(
            theirs: Any = None, *, token: str = TOKEN, rank: int = 1, num_hosts: int = 2
        ) -> pb.JoinResponse:
            settings = settings_of(port, rank=rank, num_hosts=num_hosts)
            return join(stub, settings, fingerprint() if theirs is None else theirs, token)

        yield Door(port, enter, gathered)
        # Whoever is here already is refused.
        with contextlib.suppress(ConfigError):
            enter()
        gathering.join()
        leader.close()


def test_who_is_alike_comes_in_and_is_told_where_jax_is(door: Door) -> None:
    joined = door.enter()

    assert door.gathered() == "all are here"
    assert joined.jax_coordinator == f"127.0.0.1:{door.port + 1}"
    assert (joined.epoch, joined.heartbeat_timeout_s) == (1, 5)


def test_a_wrong_token_is_refused(door: Door) -> None:
    with pytest.raises(ConfigError, match="the join token is not this world's"):
        door.enter(token="another-secret-of-16")


def test_follow_asks_for_the_token_too(door: Door) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        call = pb_grpc.WorldStub(channel).Follow(
            iter([pb.Report(epoch=1, rank=1)]), wait_for_ready=True
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_another_epoch_is_fenced_off(door: Door) -> None:
    door.enter()
    assert door.gathered() == "all are here"
    metadata = (("x-distkv-join-token", TOKEN),)
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        reports = iter([pb.Report(epoch=7, rank=1)])
        call = pb_grpc.WorldStub(channel).Follow(reports, metadata=metadata)
        with pytest.raises(grpc.RpcError, match="rank 1 of epoch 7 does not belong to epoch 1"):
            next(call)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "0.0.1"}, "version is 1.2 at the leader and 0.0.1 at"),
        (fingerprint(num_blocks=32), "engine.num_blocks is 48 at the leader and 32 at rank 1"),
        (
            fingerprint(mesh=for_hosts(load_mesh_config("cpu-8"), 2)),
            "mesh.instance is 2 at the leader and 8 at rank 1",
        ),
        (fingerprint(model="qwen2_bias"), "model.config.json is sha256 "),
    ],
    ids=["version", "engine", "mesh", "checkpoint"],
)
def test_what_differs_is_named(door: Door, change: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        door.enter(fingerprint() | change)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"rank": 2, "num_hosts": 3}, "num_hosts is 2 at the leader and 3 at rank 2"),
        ({"rank": 0}, "host_rank=0 must be within 1..1 to follow"),
    ],
)
def test_a_wrong_place_is_refused(door: Door, place: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        door.enter(**place)


def test_a_rank_comes_once(door: Door) -> None:
    door.enter()
    with pytest.raises(ConfigError, match="rank 1 is here already"):
        door.enter()


@pytest.mark.parametrize("door", [3], indirect=True)
def test_a_missing_rank_is_named_with_who_was_refused(door: Door) -> None:
    with pytest.raises(ConfigError):
        door.enter(fingerprint(num_blocks=32))

    assert door.gathered() == (
        "rank 1 of 2 did not join within 3 s; refused was: "
        "engine.num_blocks is 48 at the leader and 32 at rank 1"
    )


def test_settings_of_the_leader_alone_may_differ() -> None:
    assert fingerprint(step_profile="x.json", explain_placement=True) == fingerprint()
