"""Counts programs that are compiled while serving, of which there should be none."""

import jax
from prometheus_client import CollectorRegistry, Counter

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Compiles:
    """Counts compilations of the whole process, those of other threads too, while it is started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            "distkv_compilations",
            "Programs compiled since the server started, which is after warm-up",
            registry=registry,
        )
        self._is_on = False

    def start(self) -> None:
        """Begin to listen."""
        self._is_on = True
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def stop(self) -> None:
        """Listen no more; also where nobody did."""
        if self._is_on:
            self._is_on = False
            jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            self._counter.inc()
