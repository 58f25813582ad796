"""One process at a time on a journal's folder, by a lock that dies with its process."""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from distkv_jax.errors import ConfigError

NAME = "lock"


class FolderLock:
    """Holds a folder until it is closed, or until its process ends in whatever way.

    The file stays behind and says who had it last; the lock is the operating system's.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            ConfigError: Another process has it.
            OSError: The file cannot be made.
        """
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file: TextIO = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.closing(self._file):
                holder = self._file.read(200).strip() or "another process"
            raise ConfigError(
                f"journal {folder} is in use by {holder}, a journal has one server"
            ) from None
        self._file.truncate(0)
        began = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {began}")
        self._file.flush()

    def close(self) -> None:
        """Give the folder back."""
        self._file.close()
