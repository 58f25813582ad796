"""Settings of every test: eight simulated devices, strict numerics, a compile cache."""

from pathlib import Path

import hypothesis
import jax

from distkv_jax.mesh import load_mesh_config, make_mesh

ROOT = Path(__file__).parents[1]

# The gate tries the same examples each time: a change is judged by itself. To search further, run
# with `--hypothesis-profile=default`.
hypothesis.settings.register_profile("gate", derandomize=True)
hypothesis.settings.load_profile("gate")


def pytest_configure() -> None:
    """Set JAX up before any test module can start it."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "tests"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    make_mesh(load_mesh_config("cpu-8"))
    # On a machine with an accelerator as well: a test that wants it names it.
    jax.config.update("jax_default_device", jax.devices("cpu")[0])


def pytest_sessionstart() -> None:
    """Build the native kernel; where there is no compiler its own tests say so."""
    # Not at the top: the shape checks of jaxtyping's plugin must be there before.
    from pallas_kernels.micro_attention import cpu

    cpu.load(ROOT / ".cache" / "kernels")
