"""Blocks in the host memory of this process: arrays, copies, and what it says of them."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from distkv_jax.cache.host_pool import HostPool
from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.commands import NOT_WANTED, Fetch, Forget, HostCommand, Save
from distkv_jax.engine.host_copies import make_read, make_write
from distkv_jax.engine.pool_spec import PoolSpec
from distkv_jax.engine.step import Pools
from distkv_jax.errors import InvariantError
from distkv_jax.mesh import INSTANCE, TENSOR, place, sharding
from pallas_kernels.kv_pool import is_quantised

LANES = 8
"""Blocks that each instance copies in a round."""
MAX_AHEAD = 4
"""Rounds on their way at once: each needs device memory of its own."""
STAGED_BLOCKS = LANES * (MAX_AHEAD + 1)
"""Blocks of each instance for which devices need memory besides the pools."""


class Round(NamedTuple):
    """Blocks that were copied out of the pools and are not in host memory yet.

    Attributes:
        arrays: Of every layer, data then scales.
        targets: For each instance of this process, where its first lanes go.
    """

    arrays: list[jax.Array]
    targets: dict[int, tuple[int, ...]]


class HostMemory:
    """The host memory of the instances whose devices this process has.

    All processes of a mesh are told the same in the same order, and run the same programs; each
    keeps its own devices' part. Where an instance has devices in several processes they account
    for it alike, and the one with its first device speaks.

    Attributes:
        pools: Accounts, by instance.
    """

    def __init__(self, mesh: Mesh, spec: PoolSpec, num_blocks: int) -> None:
        """Keep nothing yet.

        Args:
            mesh: Of all processes.
            spec: Of the device's pools.
            num_blocks: Of host memory for each instance.
        """
        self._mesh = mesh
        self._spec = spec
        self._read = jax.jit(make_read(mesh), out_shardings=sharding(mesh, INSTANCE, None, TENSOR))
        self._write = jax.jit(make_write(mesh), donate_argnums=0)
        own = jax.process_index()
        self._instances = {
            device: instance
            for instance, devices in enumerate(mesh.devices)
            for device in devices
            if device.process_index == own
        }
        self.pools = {one: HostPool(one, num_blocks) for one in self._instances.values()}
        self._speaks = {
            instance
            for instance in self.pools
            if mesh.devices[instance].flat[0].process_index == own
        }
        # Memory that is not touched is not taken yet.
        self._store = {
            device: [np.empty((num_blocks, *shape), dtype) for shape, dtype in self._leaves()]
            for device in self._instances
        }
        self._on_their_way: collections.deque[Round] = collections.deque()
        self._said: list[FromHost] = []
        self._beat()

    def warm_up(self) -> tuple[Save, Fetch]:
        """Commands that run both programs and change nothing, all with number 0."""
        instances = self._mesh.shape[INSTANCE]
        return (
            Save(0, 0, "", 0, ((0,),) * instances),
            Fetch(0, 0, ((NOT_WANTED,),) * instances),
        )

    def execute(self, command: HostCommand, pools: Pools) -> Pools:
        """Carry out a command; copies may go on behind it.

        Returns:
            The pools that replace those given, which were donated.

        Raises:
            InvariantError: Blocks shall be fetched that were never saved.
        """
        match command:
            case Save():
                self._save(command, pools)
            case Fetch():
                pools = self._fetch(command, pools)
            case Forget():
                self._forget(command.save_id)
        return pools

    def hear(self) -> list[FromHost]:
        """Take what was said since the last call."""
        said, self._said = self._said, []
        return said

    def forget_all(self) -> None:
        """Let everything go, also what is on its way."""
        self._on_their_way.clear()
        for pool in self.pools.values():
            pool.forget_all()
        self._beat()

    def _save(self, command: Save, pools: Pools) -> None:
        for instance, pool in self.pools.items():
            count = len(command.blocks[instance])
            if not count:
                continue
            answer = pool.save(command.save_id, command.request_id, command.home, count)
            if instance in self._speaks:
                self._said.append(answer)
        self._beat()
        for first, lanes in self._rounds(command.blocks, default=0):
            new = self._read(pools, place(lanes, sharding(self._mesh, INSTANCE)))
            arrays = jax.tree.leaves(new)
            for array in arrays:
                for shard in array.addressable_shards:
                    shard.data.copy_to_host_async()
            targets = {
                instance: pool.blocks(command.save_id)[first : first + LANES]
                for instance, pool in self.pools.items()
            }
            self._on_their_way.append(Round(arrays, targets))
            self._settle(MAX_AHEAD)

    def _fetch(self, command: Fetch, pools: Pools) -> Pools:
        self._settle(0)
        for instance, pool in self.pools.items():
            kept, wanted = len(pool.blocks(command.save_id)), len(command.blocks[instance])
            if wanted > kept:
                raise InvariantError(
                    f"{wanted} blocks of save {command.save_id} shall be fetched to instance "
                    f"{instance}, which keeps {kept}"
                )
        rounds = self._rounds(command.blocks, default=NOT_WANTED)
        for number, (first, lanes) in enumerate(rounds, start=1):
            targets = np.where(lanes == NOT_WANTED, self._spec.num_blocks, lanes)
            new = self._staged(command.save_id, first, like=pools)
            pools = self._write(pools, new, place(targets, sharding(self._mesh, INSTANCE)))
            if number % MAX_AHEAD == 0:
                jax.block_until_ready(pools)
        self._forget(command.save_id)
        return pools

    def _forget(self, save_id: int) -> None:
        for pool in self.pools.values():
            pool.forget(save_id)
        self._beat()

    def _staged(self, save_id: int, first: int, *, like: Pools) -> Pools:
        """Bring one round of a save's blocks to the devices, each part to its own."""
        num_instances = self._mesh.shape[INSTANCE]
        where = sharding(self._mesh, INSTANCE, None, TENSOR)
        arrays = []
        for leaf, (shape, dtype) in enumerate(self._leaves()):
            parts = []
            for device, instance in self._instances.items():
                blocks = self.pools[instance].blocks(save_id)[first : first + LANES]
                part = np.zeros((LANES, *shape), dtype)
                part[: len(blocks)] = self._store[device][leaf][list(blocks)]
                parts.append(part)
            heads = shape[1] * self._mesh.shape[TENSOR]
            whole = (num_instances * LANES, shape[0], heads, *shape[2:])
            placed = jax.device_put(parts, list(self._instances))
            arrays.append(jax.make_array_from_single_device_arrays(whole, where, placed))
        return jax.tree.unflatten(jax.tree.structure(like), arrays)

    def _settle(self, most: int) -> None:
        """Bring the oldest rounds into host memory, until `most` are on their way."""
        while len(self._on_their_way) > most:
            arrays, targets = self._on_their_way.popleft()
            for leaf, array in enumerate(arrays):
                for shard in array.addressable_shards:
                    blocks = list(targets[self._instances[shard.device]])
                    self._store[shard.device][leaf][blocks] = np.asarray(shard.data)[: len(blocks)]

    def _rounds(
        self, blocks: tuple[tuple[int, ...], ...], *, default: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Cut each instance's list into rounds: where each begins, and its lanes."""
        for first in range(0, max(map(len, blocks)), LANES):
            lanes = np.full((len(blocks), LANES), default, np.int32)
            for instance, listed in enumerate(blocks):
                part = listed[first : first + LANES]
                lanes[instance, : len(part)] = part
            yield first, lanes

    def _leaves(self) -> list[tuple[tuple[int, ...], np.dtype]]:
        """A block of one device: shape and dtype of every layer's data, and of its scales."""
        spec = self._spec
        heads = spec.kv_heads // self._mesh.shape[TENSOR]
        data = (2, heads, spec.block_size, spec.head_dim)
        layer: list[tuple[tuple[int, ...], np.dtype]] = [(data, spec.dtype)]
        if is_quantised(spec.dtype):
            layer.append((data[:-1], np.dtype(np.float32)))
        return layer * spec.num_layers

    def _beat(self) -> None:
        for instance in self._speaks:
            rmanager = self.pools[instance].rmanager
            if rmanager.has_changed or not rmanager.num_beats:
                self._said.append(self.pools[instance].heartbeat())
