"""Keeping compiled programs on disk, so that only a first start compiles them."""

import jax

from distkv_jax.environment import cache_folder


def use_compile_cache() -> None:
    """Turn JAX's persistent compilation cache on, unless the user has set one."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
