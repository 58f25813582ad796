"""A server's metrics: one registry of its own, and an engine that is asked once a scrape."""

import asyncio
import contextlib
from collections.abc import Iterator

import jax
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

import distkv_jax
from distkv_jax.errors import EngineStopped
from distkv_jax.llm import LLM
from serve.observe.compiles import Compiles
from serve.observe.engine_metrics import EngineReading, engine_families, read_engine
from serve.observe.request_metrics import RequestMetrics

PATIENCE_S = 5.0
"""How long a scrape waits for the end of a step; Prometheus gives up after 10."""


class Metrics:
    """What Prometheus is told. The event loop owns it.

    Attributes:
        registry: Everything but the engine's numbers.
        requests: To be told of every request.
    """

    def __init__(self, llm: LLM, *, model: str) -> None:
        """Prepare.

        Args:
            llm: Whose engine is told of.
            model: As the server calls it.
        """
        self._llm = llm
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = RequestMetrics(self.registry, max_model_len=llm.max_model_len)
        self._compiles = Compiles(self.registry)
        self._reading: asyncio.Task[EngineReading] | None = None
        Info("distkv", "What serves", registry=self.registry).info(info_of(llm, model))

    def start(self) -> None:
        """Begin to count compilations."""
        self._compiles.start()

    def stop(self) -> None:
        """Count compilations no more."""
        self._compiles.stop()

    async def read(self) -> EngineReading | None:
        """Read the engine between two of its steps; None if it does not answer in time.

        Scrapes that come while one waits share its answer, so that they do not pile up before an
        engine that hangs.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._ask())
            self._reading.add_done_callback(self._forget_reading)
        with contextlib.suppress(TimeoutError, EngineStopped):
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(self._reading)
        return None

    async def _ask(self) -> EngineReading:
        return await asyncio.wrap_future(self._llm.thread.call_soon(read_engine))

    def _forget_reading(self, task: asyncio.Task[EngineReading]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # who scraped has heard of it, or has given up

    def encode(self, reading: EngineReading | None, accept: str) -> tuple[bytes, str]:
        """Write all metrics; any thread may.

        Args:
            reading: Of the engine, None where it did not answer.
            accept: Header by which a scraper chooses between the text format and OpenMetrics.

        Returns:
            The text and its content type.
        """
        write, content_type = choose_encoder(accept)
        return write(Joined(self.registry, reading)), content_type


class Joined(Collector):
    """A registry's metrics and a reading's, for one scrape."""

    def __init__(self, registry: CollectorRegistry, reading: EngineReading | None) -> None:
        self._registry = registry
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """Give all of them."""
        yield from engine_families(self._reading)
        yield from self._registry.collect()


def info_of(llm: LLM, model: str) -> dict[str, str]:
    """Say what serves, in words that do not change while it does."""
    return {
        "version": distkv_jax.__version__,
        "jax_version": jax.__version__,
        "model": model,
        "mesh": ",".join(f"{axis}={size}" for axis, size in llm.mesh_shape.items()),
        "platform": llm.platform,
        "block_size": str(llm.config.block_size),
        "pooling": str(llm.config.pooling).lower(),
    }
