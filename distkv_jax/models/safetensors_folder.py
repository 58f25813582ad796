"""The tensors of a safetensors checkpoint, read slice by slice."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from distkv_jax.errors import ConfigError
from distkv_jax.models.json_file import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


class SafetensorsFolder:
    """Open files of one checkpoint; reading maps memory, and copies only what is asked for.

    Owned by one thread, and closed by `close` or a `with`.

    Attributes:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        """Open every file of the checkpoint.

        Args:
            folder: Has `model.safetensors`, or an index and the files it names.

        Raises:
            ConfigError: A file is missing or damaged, or lacks a tensor that the index names.
        """
        self.folder = folder
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._open.close)
            self._slices = self._open_all()
            undo.pop_all()

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files."""
        self._slices = {}
        self._open.close()

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape as stored."""
        return tuple(self._slices[name].get_shape())

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Copy one slice of a tensor out of its file, in the type it is stored in.

        Raises:
            ConfigError: The tensor is not made of floating point numbers.
        """
        part = self._slices[name]
        if part.get_dtype() not in FLOATS:
            raise ConfigError(
                f"{name} has dtype {part.get_dtype()}, supported: {', '.join(FLOATS)}"
            )
        return part[index]

    def _open_all(self) -> dict:
        if (self.folder / INDEX).is_file():
            return self._open_sharded()
        if not (self.folder / SINGLE).is_file():
            raise ConfigError(f"{self.folder} has neither {SINGLE} nor {INDEX}")
        opened = self._open_file(SINGLE)
        return {name: opened.get_slice(name) for name in opened.keys()}

    def _open_sharded(self) -> dict:
        weight_map = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise ConfigError(f"{self.folder / INDEX} is damaged: it has no weight_map")
        files = {str(name): str(file) for name, file in weight_map.items()}
        opened = {file: self._open_file(file) for file in sorted(set(files.values()))}
        held = {file: set(handle.keys()) for file, handle in opened.items()}
        for name, file in files.items():
            if name not in held[file]:
                raise ConfigError(f"{INDEX} says {name} is in {file}, which does not have it")
        return {name: opened[file].get_slice(name) for name, file in files.items()}

    def _open_file(self, file: str):
        path = self.folder / file
        if path.parent != self.folder:
            raise ConfigError(f"{INDEX} names {file!r}, expected a file of the same folder")
        if not path.is_file():
            raise ConfigError(f"{path} is missing")
        try:
            return self._open.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
