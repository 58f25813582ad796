"""What all processes of a world must have in common, by name, so that a difference has one."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jaxlib.version

from distkv_jax.engine.config import EngineConfig
from distkv_jax.mesh import MeshConfig
from distkv_jax.models.converted_folder import MARKER
from distkv_jax.models.model_folder import CONFIG, find_model
from distkv_jax.models.safetensors_folder import INDEX

LEADERS_OWN = ("step_profile", "explain_placement")
"""Settings of the engine that only its leader reads."""

Fingerprint = Mapping[str, str]


def fingerprint_of(
    version: str, model: str | Path, mesh: MeshConfig, dtype: str, config: EngineConfig
) -> dict[str, str]:
    """Name what this process would run with.

    A checkpoint is known by its configs and by what its files say they hold, not by every weight.

    Raises:
        ConfigError: There is no such model.
        OSError: A file of it cannot be read.
    """
    own = ("name", "device_kind", "memory_gib", "topology")
    return {
        "version": version,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "dtype": dtype,
        **{f"mesh.{name}": text for name, text in fields_of(mesh) if name not in own},
        **{f"engine.{name}": text for name, text in fields_of(config) if name not in LEADERS_OWN},
        **{f"model.{name}": text for name, text in files_of(find_model(model))},
    }


def differences(leader: Fingerprint, other: Fingerprint, *, rank: int) -> list[str]:
    """List what differs, each with both values."""
    return [
        f"{name} is {leader.get(name, 'not there')} at the leader and "
        f"{other.get(name, 'not there')} at rank {rank}"
        for name in sorted({*leader, *other})
        if leader.get(name) != other.get(name)
    ]


def fields_of(settings: MeshConfig | EngineConfig) -> list[tuple[str, str]]:
    """List the fields of a dataclass with their values as text."""
    return [
        (field.name, str(getattr(settings, field.name))) for field in dataclasses.fields(settings)
    ]


def files_of(folder: Path) -> list[tuple[str, str]]:
    """List the files that say what a checkpoint is, with a digest of what they say."""
    whole = [folder / name for name in (CONFIG, INDEX, MARKER) if (folder / name).is_file()]
    found = [(path.name, digest_text(path.read_bytes())) for path in whole]
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
        found.append((path.name, f"{path.stat().st_size} bytes, {digest_text(header)}"))
    return found


def digest_text(data: bytes) -> str:
    """Name data by the beginning of its digest."""
    return f"sha256 {hashlib.sha256(data).hexdigest()[:16]}"
