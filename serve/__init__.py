"""The network service over `distkv_jax.LLM`: gRPC server and clients."""
