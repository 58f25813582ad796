"""A converted checkpoint's folder: how it is known, and whether it is whole."""

import json
from pathlib import Path

from distkv_jax.errors import ConfigError
from distkv_jax.models.json_file import read_json

FOLDER = "params"
MARKER = "distkv.json"
# Matrices lie as `linear.Linear` has them; another layout is another format.
FORMAT = "orbax, kernels as [in, out], 1"


def is_converted(folder: Path) -> bool:
    """Say whether `distkv convert` wrote this folder."""
    return (folder / MARKER).is_file()


def write_marker(folder: Path) -> None:
    """Note the format, and every file of the parameters with its size."""
    marker = {"format": FORMAT, "files": _file_sizes(folder)}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def check_files(folder: Path) -> None:
    """Refuse what was not written by this version, or not copied whole.

    Raises:
        ConfigError: Another format, or a file that is missing or has another size.
    """
    marker = read_json(folder / MARKER)
    if marker.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} has format {marker.get('format')!r}, this version reads {FORMAT!r}"
        )
    expected, found = marker.get("files"), _file_sizes(folder)
    if not isinstance(expected, dict):
        raise ConfigError(f"{folder / MARKER} is damaged: it lists no files")
    for name, num_bytes in expected.items():
        if name not in found:
            raise ConfigError(f"{folder / name} is missing")
        if found[name] != num_bytes:
            raise ConfigError(
                f"{folder / name} is damaged: it has {found[name]} bytes, expected {num_bytes}"
            )


def _file_sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted((folder / FOLDER).rglob("*"))
        if path.is_file()
    }
