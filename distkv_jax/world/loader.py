"""Loading a model and making its engine: at the start, and again when the world has changed."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import jax.numpy as jnp
from jax.sharding import Mesh

from distkv_jax.cache.performance import Profile
from distkv_jax.engine.build import build_engine, build_parts, make_coordinator
from distkv_jax.engine.commands import World
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.engine import Engine
from distkv_jax.engine.parts import Parts
from distkv_jax.engine.progress import Capacity
from distkv_jax.engine.runner import Progress, step_failures
from distkv_jax.errors import ConfigError, StepFailed, WorldLost
from distkv_jax.mesh import MeshConfig, make_mesh, on_hosts
from distkv_jax.models.checkpoint import LoadedModel, load_model
from distkv_jax.world.weights import check_weights

logger = logging.getLogger(__name__)


class Loader:
    """Makes the engine of a model on a mesh; implements `engine.parts.Renewal`.

    Refers to nothing on the devices.

    Attributes:
        mesh_shape: Devices along each axis, of the mesh as it is now.
        capacity: KV tokens that fit in the engine as it is now.
    """

    mesh_shape: Mapping[str, int]
    capacity: Capacity

    def __init__(
        self,
        model: str | Path,
        *,
        mesh: MeshConfig,
        dtype: jnp.dtype | None,
        config: EngineConfig,
        world: World | None,
    ) -> None:
        """Load nothing yet.

        Args:
            model: Folder or name of a checkpoint.
            mesh: With all processes.
            dtype: Of the weights; None for the checkpoint's own.
            config: Sizes and policies.
            world: The other processes; None where there are none.
        """
        self._model = model
        self._mesh_config = mesh
        self._dtype = dtype
        self._config = config
        self._world = world
        self._profile: Profile | None = None

    @property
    def can_renew(self) -> bool:
        """Whether there are other processes, and whole instances on each."""
        return self._world is not None and self._mesh_config.instance % self._mesh_config.hosts == 0

    @property
    def is_due(self) -> bool:
        """Whether the engine's devices are not those of the world any more, or will not be."""
        return self._world is not None and self._world.is_due

    @property
    def is_lost(self) -> bool:
        """Whether no step can run before `renew`."""
        return self._world is not None and self._world.is_lost

    @property
    def patience_s(self) -> float:
        """Seconds for which a request may wait for a lost process to come back."""
        return 0.0 if self._world is None else self._world.patience_s

    def load(
        self,
        *,
        weights: Callable[[int, int], None] | None = None,
        programs: Progress | None = None,
    ) -> tuple[LoadedModel, Engine]:
        """Load the model on the whole mesh.

        Raises:
            ConfigError: The model, the mesh or a setting cannot work.
            WorldLost: One of the other processes is gone.
        """
        mesh, loaded = self._load(self._mesh_config, weights)
        renewal = self if self.can_renew else None
        engine = build_engine(loaded, mesh, self._config, programs, self._world, renewal)
        self._profile = None if engine.step_model is None else engine.step_model.profile
        self._note(mesh, engine)
        return loaded, engine

    def renew(self) -> Parts:
        """Form the world anew and load the model there, until that succeeds.

        Raises:
            WorldLost: The world is over for good, or it fails where this process is alone.
        """
        assert self._world is not None
        begin = time.monotonic()
        while True:
            hosts = self._world.reform()
            try:
                with step_failures():
                    parts = self._load_parts(hosts)
            # Also of settings and files: one that came differs, or a disk is away for a moment.
            except (StepFailed, WorldLost, ConfigError, OSError) as error:
                if hosts == 1:
                    raise WorldLost(f"rank 0 alone cannot go on: {error}") from error
                logger.warning("the new world of %d processes failed: %s", hosts, error)
                continue
            logger.warning(
                "the world has %d processes now, after %.1f s", hosts, time.monotonic() - begin
            )
            return parts

    def _load_parts(self, hosts: int) -> Parts:
        mesh, loaded = self._load(on_hosts(self._mesh_config, hosts), None)
        config = without_warm_up(self._config)
        coordinator = make_coordinator(loaded, mesh, config)
        # Measured once: how an instance computes does not depend on how many there are.
        parts = build_parts(loaded, mesh, config, coordinator, None, self._world, self._profile)
        self._note(mesh, parts)
        return parts

    def _load(
        self, config: MeshConfig, weights: Callable[[int, int], None] | None
    ) -> tuple[Mesh, LoadedModel]:
        mesh = make_mesh(config)
        loaded = load_model(self._model, mesh=mesh, dtype=self._dtype, progress=weights)
        if self._world is not None:
            check_weights(loaded.params, mesh)
        return mesh, loaded

    def _note(self, mesh: Mesh, made: "Engine | Parts") -> None:
        self.mesh_shape = MappingProxyType(dict(mesh.shape))
        self.capacity = capacity_of(made)


def without_warm_up(config: EngineConfig) -> EngineConfig:
    """Settings for an epoch after the first, whose requests wait.

    What its steps need is read from the compile cache, or compiled, when they first need it.
    """
    return dataclasses.replace(config, warm_up=False)


def capacity_of(made: Engine | Parts) -> Capacity:
    """Count the KV tokens that fit."""
    instance_tokens = made.runner.pool.num_blocks * made.runner.pool.block_size
    return Capacity(
        instance_tokens=instance_tokens,
        mesh_tokens=instance_tokens * made.runner.num_instances,
        request_tokens=made.coordinator.max_blocks * made.runner.pool.block_size,
    )
