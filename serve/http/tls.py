"""The certificate of the HTTP port, and the authority of its clients': as those of gRPC."""

import ssl
from pathlib import Path

from distkv_jax.errors import ConfigError
from serve.settings import ServerSettings


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """Load certificates; None where the port speaks in the clear.

    Raises:
        ConfigError: A file is not what it should be.
        OSError: A file cannot be read.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    cert, key = (Path(name).expanduser() for name in (settings.tls_cert, settings.tls_key))
    try:
        # A key with a password would be asked for on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
        if settings.tls_client_ca is not None:
            context.load_verify_locations(Path(settings.tls_client_ca).expanduser())
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        files = ", ".join(
            filter(None, (settings.tls_cert, settings.tls_key, settings.tls_client_ca))
        )
        raise ConfigError(f"{files} are no PEM certificate, key and authority: {error}") from error
    return context
