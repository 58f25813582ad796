"""The one place that reads, and adds to, the process environment."""

import os
from collections.abc import Mapping
from pathlib import Path

from distkv_jax.errors import ConfigError

CACHE_VARIABLE = "DISTKV_CACHE_DIR"
API_KEY_VARIABLE = "DISTKV_API_KEY"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"


def cache_folder() -> Path:
    """Find the folder for what can be rebuilt: compiled programs, built kernels.

    Returns:
        `$DISTKV_CACHE_DIR`, else `$XDG_CACHE_HOME/distkv-jax`, else `~/.cache/distkv-jax`. The
        folder need not exist yet.

    Raises:
        ConfigError: The variable names something that is not a folder, or a relative path.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        folder = Path(given)
        if not folder.is_absolute() or (folder.exists() and not folder.is_dir()):
            raise ConfigError(f"{CACHE_VARIABLE}={given} must be the absolute path of a folder")
        return folder
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distkv-jax"


def api_key() -> str | None:
    """Read the API key that a server asks for, or a client gives; None where there is none."""
    return os.environ.get(API_KEY_VARIABLE) or None


def openai_api_key() -> str | None:
    """Read the API key that clients of OpenAI-compatible servers have; None without one."""
    return os.environ.get(OPENAI_KEY_VARIABLE) or None


def variables(*names: str) -> dict[str, str]:
    """Read what a launcher has said of this process: those of its variables that are set."""
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def of_simulation() -> dict[str, str]:
    """The environment of a process that shall simulate devices as this one does, and use no others.

    Returns:
        This process's own, with what `add_xla_flags` has added, and JAX on CPU only.
    """
    return {**os.environ, "JAX_PLATFORMS": "cpu"}


def add_xla_flags(flags: Mapping[str, str]) -> None:
    """Add `flags` to XLA_FLAGS; one that the user has set keeps the user's value.

    XLA reads the variable when the first backend starts: later additions have no effect.

    Args:
        flags: Name, without the leading dashes, to value.
    """
    words = os.environ.get("XLA_FLAGS", "").split()
    known = {word.split("=", 1)[0] for word in words}
    words += [f"--{name}={value}" for name, value in flags.items() if f"--{name}" not in known]
    os.environ["XLA_FLAGS"] = " ".join(words)


def allow_absent_tpu() -> None:
    """Let the TPU's compiler start on a machine without a TPU.

    It would ask the metadata server of a cloud machine which TPU this is. What the user has set
    stays.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
