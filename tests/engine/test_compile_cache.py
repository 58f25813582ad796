"""Compiled programs are kept on disk, in the user's own folder where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from distkv_jax.engine.compile_cache import use_compile_cache

ROOT = Path(__file__).parents[2]
CODE = """
import jax
jax.jit(lambda x: x + 1)(1)  # the user was first, with the cache still off
from distkv_jax.engine.compile_cache import use_compile_cache
use_compile_cache()
jax.jit(lambda x: x * 3)(1)
print(jax.config.jax_compilation_cache_dir)
"""


def run(**environment: str) -> str:
    """Run `CODE` in a Python of its own, and give the folder that it used."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env={**mine, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_fresh_folder_gets_every_program_also_when_jax_ran_before(tmp_path: Path) -> None:
    folder = run(DISTKV_CACHE_DIR=str(tmp_path))

    assert folder == str(tmp_path / "xla")
    assert [file for file in Path(folder).iterdir() if "lambda" in file.name]


def test_a_folder_that_the_user_has_set_is_kept(tmp_path: Path) -> None:
    own = str(tmp_path / "own")

    assert run(DISTKV_CACHE_DIR=str(tmp_path), JAX_COMPILATION_CACHE_DIR=own) == own
    assert not (tmp_path / "xla").exists()


def test_settings_of_this_process_stay_where_a_folder_is_set() -> None:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    assert before[0] is not None

    use_compile_cache()

    assert [getattr(jax.config, name) for name in names] == before
