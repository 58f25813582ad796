"""The `distkv` command."""

from distkv_jax.cli.main import main

__all__ = ["main"]
