"""Attention over blocks of a KV pool: kernels that know JAX and nothing else of the project."""
