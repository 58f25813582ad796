"""Who may call: API keys, compared in constant time, and the names and rights behind them."""

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from distkv_jax.errors import ConfigError, Unauthenticated

logger = logging.getLogger(__name__)

MIN_KEY_CHARS = 16
ENVIRONMENT = "environment"
"""Name of the caller whose key is in the environment."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Caller(NamedTuple):
    """Who calls.

    Attributes:
        name: Empty where the server has no keys.
        is_admin: Whether it may call `Control`.
    """

    name: str
    is_admin: bool


ANYBODY = Caller("", is_admin=True)


class Keys:
    """The keys a server knows; of each only a digest is kept. Immutable, safe for any thread."""

    def __init__(self, callers: Iterable[tuple[str, Caller]] = ()) -> None:
        """Take keys in.

        Args:
            callers: Each key with whom it stands for.

        Raises:
            ConfigError: A key is too short or was given twice; no message shows a key.
        """
        self._digests: list[tuple[bytes, Caller]] = []
        known: set[bytes] = set()
        for key, caller in callers:
            if len(key) < MIN_KEY_CHARS:
                raise ConfigError(
                    f"the API key of {caller.name} has {len(key)} characters, "
                    f"must have at least {MIN_KEY_CHARS}"
                )
            digest = _digest(key)
            if digest in known:
                raise ConfigError(f"the API key of {caller.name} is another caller's too")
            known.add(digest)
            self._digests.append((digest, caller))

    def __len__(self) -> int:
        return len(self._digests)

    def caller_of(self, key: str | None) -> Caller:
        """Tell whom a key stands for; the time it takes does not depend on the key.

        Raises:
            Unauthenticated: It stands for nobody.
        """
        if not self._digests:
            return ANYBODY
        if key is None:
            raise Unauthenticated("no API key, expected metadata authorization: Bearer KEY")
        digest, found = _digest(key), None
        for known, caller in self._digests:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthenticated("the API key is not known")
        return found


def load_keys(file: str | None, variable: str | None) -> Keys:
    """Read keys from a file and from the value of the environment variable.

    A name may have several keys, so that one can be changed without a gap.

    Raises:
        ConfigError: A line is not `NAME KEY` or `NAME KEY admin`; told by its number.
        OSError: The file cannot be read.
    """
    callers: list[tuple[str, Caller]] = []
    if variable is not None:
        callers.append((variable, Caller(ENVIRONMENT, is_admin=True)))
    if file is not None:
        warn_if_shared(file)
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8 text: {error}") from error
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            is_admin = words[2:] == ["admin"]
            if not (len(words) == 2 or is_admin) or not NAME.fullmatch(words[0]):
                raise ConfigError(
                    f"{file} line {number} has {len(words)} words, must be NAME KEY or "
                    "NAME KEY admin; a name has letters, digits and _.- only"
                )
            if words[0] == ENVIRONMENT:
                raise ConfigError(f"{file} line {number} has the reserved name {ENVIRONMENT}")
            callers.append((words[1], Caller(words[0], is_admin)))
    if file is not None and not callers:
        raise ConfigError(f"{file} has no keys")
    return Keys(callers)


def warn_if_shared(file: str) -> None:
    """Log a warning if others on this machine can read a file of keys.

    Raises:
        OSError: There is no such file.
    """
    mode = stat.S_IMODE(Path(file).expanduser().stat().st_mode)
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s has mode %o: others can read the keys in it, use 600", file, mode)


def bearer(authorization: str | None) -> str | None:
    """Take the key out of an `authorization` header."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
