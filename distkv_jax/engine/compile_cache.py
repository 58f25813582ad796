"""Keeping compiled programs on disk, so that only a first start compiles them."""

import jax
from jax._src import distributed  # see `write_own_programs`: there is no public way

from distkv_jax.environment import cache_folder


def use_compile_cache() -> None:
    """Turn JAX's persistent compilation cache on, unless the user has set one."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def write_own_programs() -> None:
    """Let this process write to the cache too; call it when JAX has made its devices.

    JAX has only process 0 write, to spare shared file systems, but on CPU an entry's name differs
    by process: the others would compile at every start, and every time that a host is lost.
    """
    # What JAX itself needs the number for is done when there are devices, which have their own.
    distributed.global_state.process_id = 0
