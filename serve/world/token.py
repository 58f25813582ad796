"""The secret by which the processes of a service know each other."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from distkv_jax.errors import ConfigError

KEY = "x-distkv-join-token"
MIN_CHARACTERS = 16


def read_token(file: str) -> str:
    """Read a token from its file.

    Raises:
        ConfigError: It is too short, or not of plain characters.
        OSError: The file cannot be read.
    """
    token = Path(file).expanduser().read_bytes().strip()
    if len(token) < MIN_CHARACTERS:
        raise ConfigError(
            f"{file} has a token of {len(token)} characters, at least {MIN_CHARACTERS} are needed"
        )
    if not all(33 <= byte < 127 for byte in token):
        raise ConfigError(f"{file} has a token with spaces or other than ASCII characters")
    return token.decode()


def is_in(metadata: Iterable[tuple[str, str | bytes]], token: str) -> bool:
    """Say whether a call carries the token; the time it takes does not depend on it."""
    given = next((value for key, value in metadata if key == KEY), "")
    data = given.encode() if isinstance(given, str) else given
    return hmac.compare_digest(
        hashlib.sha256(data).digest(), hashlib.sha256(token.encode()).digest()
    )
