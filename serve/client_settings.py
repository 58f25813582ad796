"""Where a client's server is, how it is reached, and how patient the client is."""

import dataclasses
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from distkv_jax.environment import api_key
from distkv_jax.errors import ConfigError
from serve.certificates import Pem, read_certificates
from serve.keys import warn_if_shared


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """Settings of a client.

    Attributes:
        server: HOST:PORT of the server.
        api_key: What the server lets this caller in by; None takes api_key_file, else the
            environment's DISTKV_API_KEY.
        api_key_file: File with the key, alone or in a line NAME KEY; the first line counts that is
            neither empty nor begins with #.
        tls_ca: PEM file of the authority that signed the server's certificate; with it or with
            tls the connection is encrypted.
        tls: Encrypt, trusting the authorities that gRPC trusts.
        tls_cert: PEM file of a certificate to show to the server.
        tls_key: PEM file with its key.
        insecure: Send the API key to another machine even without TLS, where anybody on the way
            can read it.
        timeout_s: Seconds for a call, retries included; None for any time.
        max_retries: Times a call is tried again that the server says may be; waits double from
            0.2 seconds and are random.
        reattach_s: Seconds for which a durable stream whose connection is lost tries to attach
            again, without having got anything; 0 gives up at once.
        max_message_mib: Largest answer in MiB.
    """

    server: str = "127.0.0.1:50051"
    api_key: str | None = dataclasses.field(default=None, repr=False)
    api_key_file: str | None = None
    tls_ca: str | None = None
    tls: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: bool = False
    timeout_s: float | None = None
    max_retries: int = 4
    reattach_s: float = 60.0
    max_message_mib: int = 64

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be above 0 or None")
        if not self.reattach_s >= 0:
            raise ConfigError(f"reattach_s={self.reattach_s} must be at least 0")
        if self.max_retries < 0:
            raise ConfigError(f"max_retries={self.max_retries} must be at least 0")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together, one of them was given")

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        if self.server.startswith(("unix:", "unix-abstract:")):
            return True
        # Any other part before HOST:PORT, such as another resolver, may lead elsewhere.
        host = self.server.removeprefix("dns:///").rpartition(":")[0].strip("[]")
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def options(self) -> Sequence[tuple[str, int]]:
        """List the options of the channel."""
        return (
            ("grpc.max_receive_message_length", self.max_message_mib * 2**20),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Tries again are counted and told here, not hidden in the channel.
            ("grpc.enable_retries", 0),
            # A server that comes back is found soon: the default grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Give what every call carries: the key, where there is one.

        Raises:
            ConfigError: The file has no key, or the key would go out in the clear.
            OSError: It cannot be read.
        """
        key = self.api_key
        if key is None and self.api_key_file is not None:
            key = read_key(self.api_key_file)
        key = key or api_key()
        if key is None:
            return ()
        if not key.isascii() or not key.isprintable():
            raise ConfigError("the API key must be printable ASCII")
        if not (self.has_tls or self.is_local or self.insecure):
            raise ConfigError(
                f"server={self.server} is another machine: the API key would be sent in the "
                "clear, use tls_ca, tls or insecure (--tls-ca, --tls, --insecure)"
            )
        return (("authorization", f"Bearer {key}"),)

    def certificates(self) -> Pem:
        """Read authority, key and certificate.

        Raises:
            ConfigError: What is in a file is not what it should be.
            OSError: A file cannot be read.
        """
        return read_certificates(self.tls_ca, self.tls_key, self.tls_cert)


def read_key(file: str) -> str:
    """Read a client's key, the first in a file.

    Raises:
        ConfigError: There is none.
        OSError: The file cannot be read.
    """
    warn_if_shared(file)
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error}") from error
    lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = next((words for words in lines if words), [])
    if not 1 <= len(words) <= 3:
        raise ConfigError(f"{file} has no line KEY or NAME KEY")
    return words[0] if len(words) == 1 else words[1]
