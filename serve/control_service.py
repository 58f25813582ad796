"""`distkv.v1.Control`: load, blocks and debts, and the drain."""

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

from distkv_jax.engine.engine import Engine
from serve.dispatch import Dispatcher
from serve.errors import FieldError
from serve.live.message import message_of
from serve.live.watch import DEFAULT_INTERVAL_S, Watch
from serve.observe.profiler import DEFAULT_S, Profiler
from serve.proto.distkv.v1 import control_pb2 as pb
from serve.proto.distkv.v1 import control_pb2_grpc


class ControlService(control_pb2_grpc.ControlServicer):
    """Reads the engine between two of its steps."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        watch: Watch,
        profiler: Profiler,
        drain: Callable[[float | None], None],
    ) -> None:
        """Serve control.

        Args:
            dispatcher: Whose engine is looked at.
            watch: Takes pictures of it.
            profiler: Takes traces of it.
            drain: Begins to stop the server, with so many seconds of grace or its own.
        """
        self._dispatcher = dispatcher
        self._watch = watch
        self._profiler = profiler
        self._drain = drain

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:
        """Tell how busy the server is."""
        del request, context
        load = await asyncio.wrap_future(self._dispatcher.llm.thread.call_soon(load_of))
        load.num_requests = self._dispatcher.quota.num_requests
        load.num_waiting_tokens = self._dispatcher.quota.num_waiting_tokens
        load.is_draining = self._dispatcher.is_draining
        return load

    async def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.GetPoolResponse:
        """Tell where every block is, and who owes whom."""
        del request, context
        return await asyncio.wrap_future(self._dispatcher.llm.thread.call_soon(pool_of))

    async def Watch(self, request: pb.WatchRequest, context: Any) -> None:
        """Show the server until the caller leaves or it stops; a slow reader misses pictures."""
        has_interval = request.HasField("interval_s")
        interval_s = request.interval_s if has_interval else DEFAULT_INTERVAL_S
        async with contextlib.aclosing(self._watch.views(interval_s)) as views:
            async for view in views:
                await context.write(message_of(view))

    async def Profile(self, request: pb.ProfileRequest, context: Any) -> pb.ProfileResponse:
        """Trace the process for a while; answers when the trace is written."""
        del context
        duration_s = request.duration_s if request.HasField("duration_s") else DEFAULT_S
        folder = await self._profiler.trace(duration_s)
        return pb.ProfileResponse(folder=str(folder))

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        """Begin to stop the server; answers at once."""
        del context
        grace_s = request.grace_s if request.HasField("grace_s") else None
        if grace_s is not None and not (math.isfinite(grace_s) and 0 <= grace_s <= 86400):
            raise FieldError(f"grace_s={grace_s} must be within 0..86400", "grace_s")
        self._drain(grace_s)
        return pb.DrainResponse(num_requests=self._dispatcher.quota.num_requests)


def load_of(engine: Engine) -> pb.GetLoadResponse:
    """Read an engine's load."""
    stats, usage = engine.stats, engine.coordinator.usage()
    return pb.GetLoadResponse(
        num_running=engine.num_running,
        num_waiting=engine.num_waiting,
        num_blocks=sum(one.total for one in usage),
        num_free_blocks=sum(one.free for one in usage),
        prompt_tokens=stats.num_prompt_tokens,
        generated_tokens=stats.num_generated_tokens,
        num_steps=stats.num_steps,
        num_spanning_steps=stats.num_spanning_steps,
        num_preemptions=stats.num_preemptions,
        num_failed_steps=stats.num_failed_steps,
        num_fetched_tokens=stats.num_fetched_tokens,
    )


def pool_of(engine: Engine) -> pb.GetPoolResponse:
    """Read an engine's blocks."""
    ledger = engine.coordinator.gmanager.ledger
    pool = pb.GetPoolResponse(block_size=engine.runner.pool.block_size)
    for instance, usage in enumerate(engine.coordinator.usage()):
        pool.instances.add(
            instance=instance,
            **usage._asdict(),
            debts=[
                pb.Debt(debtor=debtor, num_blocks=count)
                for debtor, count in sorted(ledger.row(instance).lent.items())
            ],
        )
    for name, blocks in engine.coordinator.placement().items():
        pool.requests.add(request_id=name, blocks=blocks)
    for instance, usage in enumerate(engine.host_usage()):
        pool.hosts.add(instance=instance, total=usage.total, free=usage.free, held=usage.held)
    return pool
