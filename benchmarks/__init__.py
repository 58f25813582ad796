"""Programs that measure DistKV-JAX on the machine they run on."""
