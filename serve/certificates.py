"""Certificates and keys in PEM files, checked when they are read.

gRPC says no more of a wrong file than that it cannot listen, or cannot connect.
"""

import ssl
from pathlib import Path
from typing import NamedTuple

from distkv_jax.errors import ConfigError


class Pem(NamedTuple):
    """What the files hold; None where there is no such file."""

    authority: bytes | None
    key: bytes | None
    cert: bytes | None


def read_certificates(authority: str | None, key: str | None, cert: str | None) -> Pem:
    """Read PEM files.

    Args:
        authority: File of the authority that signs the other side's certificates.
        key: File of one's own key.
        cert: File of the certificate for it, with its chain.

    Raises:
        ConfigError: A file holds something else, or key and certificate do not belong together.
        OSError: A file cannot be read.
    """
    files = (authority, key, cert)
    pem = Pem(*(None if file is None else Path(file).expanduser().read_bytes() for file in files))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if authority is not None and pem.authority is not None:
        try:
            context.load_verify_locations(cadata=pem.authority.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{authority} has no certificate in PEM form") from error
    if key is not None and cert is not None:
        try:
            # Without a password OpenSSL would ask at the terminal.
            context.load_cert_chain(
                Path(cert).expanduser(), Path(key).expanduser(), password=lambda: b""
            )
        except ssl.SSLError as error:
            raise ConfigError(_trouble(context, cert, key, error)) from error
    return pem


def _trouble(context: ssl.SSLContext, cert: str, key: str, error: ssl.SSLError) -> str:
    """Say which of two files is wrong."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key} is not that of the certificate in {cert}"
    try:
        context.load_verify_locations(Path(cert).expanduser())
    except ssl.SSLError:
        return f"{cert} has no certificate in PEM form"
    return f"{key} has no key in PEM form that can be read without a password"
