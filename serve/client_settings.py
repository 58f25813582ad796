"""Where a client's server is, how it is reached, and how patient the client is."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from distkv_jax.environment import api_key
from distkv_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """Settings of a client.

    Attributes:
        server: HOST:PORT of the server.
        api_key: What the server lets this caller in by; None takes api_key_file, else the
            environment's DISTKV_API_KEY.
        api_key_file: File with the key, alone or in a line NAME KEY.
        tls_ca: PEM file of the authority that signed the server's certificate; with it or with
            tls the connection is encrypted.
        tls: Encrypt, trusting the authorities that gRPC trusts.
        tls_cert: PEM file of a certificate to show to the server.
        tls_key: PEM file with its key.
        timeout_s: Seconds for a call, retries included; None for any time.
        max_retries: Times a call is tried again that the server says may be; waits double from
            0.2 seconds and are random.
        max_message_mib: Largest answer in MiB.
    """

    server: str = "127.0.0.1:50051"
    api_key: str | None = dataclasses.field(default=None, repr=False)
    api_key_file: str | None = None
    tls_ca: str | None = None
    tls: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    timeout_s: float | None = None
    max_retries: int = 4
    max_message_mib: int = 64

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be above 0 or None")
        if self.max_retries < 0:
            raise ConfigError(f"max_retries={self.max_retries} must be at least 0")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together, one of them was given")

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    def options(self) -> Sequence[tuple[str, int]]:
        """List the options of the channel."""
        return (
            ("grpc.max_receive_message_length", self.max_message_mib * 2**20),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Tries again are counted and told here, not hidden in the channel.
            ("grpc.enable_retries", 0),
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Give what every call carries: the key, where there is one.

        Raises:
            ConfigError: The file has no key.
            OSError: It cannot be read.
        """
        key = self.api_key
        if key is None and self.api_key_file is not None:
            lines = Path(self.api_key_file).expanduser().read_text(encoding="utf-8").splitlines()
            words = next((line.split() for line in lines if line.strip()), [])
            if not 1 <= len(words) <= 3:
                raise ConfigError(f"{self.api_key_file} has no line KEY or NAME KEY")
            key = words[0] if len(words) == 1 else words[1]
        key = key or api_key()
        if key is None:
            return ()
        if not key.isascii() or not key.isprintable():
            raise ConfigError("the API key must be printable ASCII")
        return (("authorization", f"Bearer {key}"),)

    def certificates(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Read authority, key and certificate.

        Raises:
            OSError: A file cannot be read.
        """
        files = (self.tls_ca, self.tls_key, self.tls_cert)
        ca, key, cert = (
            None if file is None else Path(file).expanduser().read_bytes() for file in files
        )
        return ca, key, cert
