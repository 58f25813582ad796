"""Waiting for a host's name: a pod starts before its own name is known to DNS."""

import socket
import time

from distkv_jax.errors import ConfigError

PAUSE_S = 1.0


def wait_for_name(host: str, timeout_s: float) -> None:
    """Wait until a name has an address.

    Raises:
        ConfigError: It has none in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except socket.gaierror as error:
            if time.monotonic() + PAUSE_S > deadline:
                raise ConfigError(
                    f"host {host!r} had no address within {timeout_s:g} s: {error.strerror}"
                ) from error
        time.sleep(PAUSE_S)
