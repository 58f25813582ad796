"""Mesh files, one TOML per topology; `distkv_jax.mesh` finds them here by name."""
