"""Do all instances hold the same weights? A host with an older checkpoint would answer wrongly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from distkv_jax.errors import ConfigError, WorldLost
from distkv_jax.mesh import INSTANCE
from distkv_jax.models.weight_names import flat_params

MAX_NAMED = 4
ODD = np.uint32(0x1E3779B1)
"""Makes a word's place count: words that changed places give another sum."""


def check_weights(params: nnx.State, mesh: Mesh) -> None:
    """Compare the weights of all instances; run it in every process of the mesh at once.

    Raises:
        ConfigError: Some differ from those of instance 0, and this process is the one that has
            them, or has instance 0; named.
        WorldLost: They are another process's: this one is well.
    """
    flat = flat_params(params)
    leaves = [leaf[...] for _, leaf in flat]
    sums = np.asarray(jax.jit(functools.partial(sums_of_all, mesh=mesh))(leaves))
    for instance, differs in enumerate(sums != sums[0]):
        if differs.any():
            paths = [".".join(map(str, flat[int(at)][0])) for at in np.flatnonzero(differs)]
            more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
            theirs = mesh.devices[instance].flat[0].process_index
            kind = ConfigError if jax.process_index() in (0, theirs) else WorldLost
            raise kind(
                f"process {theirs} has other weights than rank 0 in "
                f"{', '.join(paths[:MAX_NAMED])}{more}"
            )


def sums_of_all(leaves: list[Array], *, mesh: Mesh) -> UInt32[Array, "instances params"]:
    """Sum the bits of every parameter on every instance."""
    return jax.shard_map(
        lambda parts: lax.all_gather(jnp.stack([sum_of(part) for part in parts]), INSTANCE),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
        axis_names={INSTANCE},
        check_vma=False,
    )(leaves)


def sum_of(array: Array) -> UInt32[Array, ""]:
    """Sum an array's bits, each word weighted by its place; wraps around."""
    kind = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    words = lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    for axis in range(words.ndim):
        places = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        # Another factor for each axis: a transposed matrix is another one.
        factor = ODD * np.uint32(2 * (2 * axis + 1))
        words = words * (places * factor + 1)
    return words.sum(dtype=jnp.uint32)
