"""A process that follows, from joining its leader to leaving."""

import os
import sys
from pathlib import Path

import grpc

from distkv_jax.engine.build import follow_engine
from distkv_jax.engine.compile_cache import use_compile_cache, write_own_programs
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.runner import step_failures
from distkv_jax.errors import ConfigError, StepFailed, Unavailable, WorldLost
from distkv_jax.llm import dtype_on
from distkv_jax.mesh import MeshConfig, make_mesh, on_hosts
from distkv_jax.models.checkpoint import load_model
from distkv_jax.world.connections import own_addresses
from distkv_jax.world.fingerprint import Fingerprint
from distkv_jax.world.follower import Follower
from distkv_jax.world.loader import without_warm_up
from distkv_jax.world.processes import Presence
from distkv_jax.world.weights import check_weights
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.exit import end_process
from serve.world.link import Link
from serve.world.settings import WorldSettings
from serve.world.token import KEY
from serve.world.wire import Wire

RECONNECT_MS = 2_000
"""For one try to reach the leader, and between two of them."""
SET_UP = 1
"""Stands for the command that fails, where there was none yet."""


def follow(
    settings: WorldSettings,
    fingerprint: Fingerprint,
    token: str,
    *,
    model: str | Path,
    mesh: MeshConfig,
    dtype: str,
    config: EngineConfig,
) -> None:
    """Join, make a runner, and run the leader's commands until it stops.

    Raises:
        ConfigError: The leader refused this process, or the model cannot run here.
        Unavailable: There is no leader.
    """
    with connect(settings) as channel:
        stub = pb_grpc.WorldStub(channel)
        is_again = False
        while True:
            joined = join(stub, settings, fingerprint, token, is_again=is_again)
            is_again = True
            link = Link(stub, settings, token, joined, end_process)
            presence = None
            try:
                presence = Presence(
                    joined.jax_coordinator,
                    num_processes=joined.num_processes,
                    process_id=joined.process_id,
                    platform=mesh.platform,
                    timeout_s=settings.join_timeout_s,
                )
                follow_epoch(
                    link,
                    settings,
                    joined,
                    model=model,
                    mesh=mesh,
                    dtype=dtype,
                    config=config if joined.epoch == 1 else without_warm_up(config),
                )
            except (StepFailed, WorldLost) as error:
                # Another process was lost meanwhile, or soon hears that this one cannot go on.
                link.failed(SET_UP, str(error))
                link.wait_end()
            except Exception as error:
                link.failed(0, str(error))
                raise
            if not link.is_reforming:
                if presence is not None:
                    presence.leave()
                link.close()
                return
            if presence is None:
                raise WorldLost(f"rank {settings.rank} could not enter epoch {joined.epoch}")
            presence.drop_devices()
            presence.leave()
            link.close()


def follow_epoch(
    link: Link,
    settings: WorldSettings,
    joined: pb.JoinResponse,
    *,
    model: str | Path,
    mesh: MeshConfig,
    dtype: str,
    config: EngineConfig,
) -> None:
    """Make a runner, and run the leader's commands until it ends the epoch.

    Nothing refers to the devices any more when it returns.

    Raises:
        ConfigError: The model cannot run here.
        StepFailed: The devices failed before there was a runner.
    """
    use_compile_cache()
    write_own_programs()
    with step_failures():
        devices = make_mesh(on_hosts(mesh, joined.num_processes))
        loaded = load_model(model, mesh=devices, dtype=dtype_on(dtype, mesh))
        check_weights(loaded.params, devices)
        begin = link.begin()
        if begin is None:
            return
        link.set_stage(pb.STAGE_COMPILING)
        runner = follow_engine(loaded, devices, config, begin.num_blocks, begin.implementation)
    link.set_stage(pb.STAGE_READY)
    wire = Wire(
        num_blocks=begin.num_blocks, num_slots=config.max_num_seqs, vocab_size=runner.vocab_size
    )
    print(
        f"rank {settings.rank} follows, one of {joined.num_processes} in epoch {joined.epoch}",
        file=sys.stderr,
    )
    with Follower(runner, link) as follower:
        follower.run(link.commands(wire))


def connect(settings: WorldSettings) -> grpc.Channel:
    """Open a connection to the leader, which need not be there yet."""
    silence_ms = round(1000 * settings.heartbeat_timeout_s)
    options = [
        # Who waits to join hears nothing for long, and of a leader that was cut off never again.
        ("grpc.keepalive_time_ms", silence_ms),
        ("grpc.keepalive_timeout_ms", silence_ms),
        # The time-out above is the kernel's; this one is for who answers it, but is stopped.
        ("grpc.http2.ping_timeout_ms", silence_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", -1),
        # A leader that was cut off is found soon: the defaults grow to two minutes, and a try that
        # nobody answers would last 20 s.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
    ]
    return grpc.insecure_channel(f"{settings.host}:{settings.port}", options)


def join(
    stub: pb_grpc.WorldStub,
    settings: WorldSettings,
    fingerprint: Fingerprint,
    token: str,
    *,
    is_again: bool = False,
) -> pb.JoinResponse:
    """Ask to be let in, and wait until an epoch begins.

    Args:
        stub: Of the leader.
        settings: Of this process.
        fingerprint: What the leader must have too.
        token: The secret of all.
        is_again: Whether this process was in already: a leader that is not there has gone, else it
            is about to come.

    Raises:
        ConfigError: The leader refused this process; says why.
        Unavailable: There is no leader, or not all ranks came.
    """
    request = pb.JoinRequest(
        rank=settings.rank,
        num_hosts=settings.num_hosts,
        pid=os.getpid(),
        addresses=sorted(own_addresses(settings.host, settings.port)),
        fingerprint=fingerprint,
    )
    address = f"{settings.host}:{settings.port}"
    try:
        return stub.Join(
            request,
            metadata=((KEY, token),),
            wait_for_ready=not is_again,
            # The leader tells who is missing; this is for when there is none.
            timeout=settings.join_timeout_s + 1,
        )
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        refused = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED)
        kind = ConfigError if error.code() in refused else Unavailable
        raise kind(
            f"rank {settings.rank} could not join at {address}: {error.details()}"
        ) from error
