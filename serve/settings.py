"""How a server listens, whom it lets in, and how much it takes at once."""

import dataclasses
import ipaddress

from distkv_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Settings of a server; those of its engine are in `EngineConfig`.

    Attributes:
        host: Address to listen on. Another one than this machine's own needs TLS, and keys or
            client certificates.
        port: TCP port of gRPC; 0 takes a free one, which is printed.
        http_port: TCP port of OpenAI's HTTP interface, on the same host; 0 takes a free one, None
            has no HTTP.
        served_model_name: What the server calls its model; None takes the folder's name.
        api_key_file: File with a line NAME KEY for each caller, or NAME KEY admin for who may call
            Control, /live and /metrics too. A key in DISTKV_API_KEY is an admin's. Without any key
            everybody is let in.
        tls_cert: PEM file with the server's certificate chain; with tls_key the port speaks TLS.
        tls_key: PEM file with the key of the certificate.
        tls_client_ca: PEM file of the authority whose certificates clients must show.
        insecure_public: Listen on any address without TLS or without keys.
        max_message_mib: Largest message, or body of HTTP, in MiB; one of 4 holds about 1.4 million
            token ids.
        max_num_requests: Requests under way at once, over all callers; more are refused.
        quota_requests: Requests under way at once of one caller; None for any number.
        quota_tokens: Prompt tokens of one caller that may wait for their first token; None for
            any number. A caller with nothing waiting may send a prompt of any length.
        stream_interval_ms: Least milliseconds between two pieces of a stream; tokens that come
            faster share a piece, the first one and the end do not wait.
        max_unread_tokens: Tokens kept for a client that does not read its stream; beyond them
            its request is cancelled.
        keepalive_s: Seconds of silence after which a connection is probed; one that does not answer
            for as long is closed, and its requests end.
        step_timeout_s: Seconds without a step's end after which health says NOT_SERVING, as long as
            the engine does not answer; shapes are compiled before, at the start.
        drain_grace_s: Seconds that accepted requests have to finish when the server is stopped.
        otlp_traces_endpoint: URL of an OpenTelemetry collector that is sent a trace of every
            request by gRPC, such as http://localhost:4317; needs the extra otel.
        journal: Folder, on a disk of this machine, of the journal that keeps durable requests:
            those that are unfinished when the process ends, in whatever way, are gone on with at
            its next start with the same folder. None for no durable requests.
        journal_keep_s: Seconds for which a durable request that has ended can be attached to.
        journal_keep_mib: MiB of ended durable requests that are kept at most; the oldest go first.
        durable_by_default: Make every gRPC request durable that does not say durable=false.
        profile_dir: Folder for traces of JAX's profiler, which admins may then ask for.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    http_port: int | None = 8000
    served_model_name: str | None = None
    api_key_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    insecure_public: bool = False
    max_message_mib: int = 16
    max_num_requests: int = 4096
    quota_requests: int | None = None
    quota_tokens: int | None = None
    stream_interval_ms: float = 10.0
    max_unread_tokens: int = 4096
    keepalive_s: float = 30.0
    step_timeout_s: float = 300.0
    drain_grace_s: float = 30.0
    otlp_traces_endpoint: str | None = None
    journal: str | None = None
    journal_keep_s: float = 3600.0
    journal_keep_mib: int = 256
    durable_by_default: bool = False
    profile_dir: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be within 0..65535")
        if self.http_port is not None and not 0 <= self.http_port <= 65535:
            raise ConfigError(f"http_port={self.http_port} must be within 0..65535 or None")
        if self.port and self.http_port == self.port:
            raise ConfigError(f"http_port={self.http_port} and port={self.port} must differ")
        if not 1 <= self.max_message_mib <= 1024:
            raise ConfigError(f"max_message_mib={self.max_message_mib} must be within 1..1024")
        for name in ("max_num_requests", "max_unread_tokens", "quota_requests", "quota_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not 0 <= self.stream_interval_ms <= 10_000:
            raise ConfigError(
                f"stream_interval_ms={self.stream_interval_ms} must be within 0..10000"
            )
        if not 1 <= self.keepalive_s <= 86400:
            raise ConfigError(f"keepalive_s={self.keepalive_s} must be within 1..86400")
        if not 0 < self.step_timeout_s <= 86400:
            raise ConfigError(
                f"step_timeout_s={self.step_timeout_s} must be above 0, at most 86400"
            )
        if not 0 <= self.drain_grace_s <= 86400:
            raise ConfigError(f"drain_grace_s={self.drain_grace_s} must be within 0..86400")
        if not 0 <= self.journal_keep_s <= 1e9:
            raise ConfigError(f"journal_keep_s={self.journal_keep_s} must be within 0..1e9")
        if not 1 <= self.journal_keep_mib <= 2**20:
            raise ConfigError(f"journal_keep_mib={self.journal_keep_mib} must be within 1..{2**20}")
        if self.durable_by_default and self.journal is None:
            raise ConfigError("durable_by_default needs a journal")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together, one of them was given")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key")

    @property
    def has_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return self.tls_cert is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def check_exposure(settings: ServerSettings, *, has_keys: bool) -> None:
    """Refuse to listen to other machines without knowing who calls, or in the clear.

    Raises:
        ConfigError: It would; says what is missing.
    """
    if settings.is_local or settings.insecure_public:
        return
    missing = []
    if not settings.has_tls:
        missing.append("TLS (--tls-cert, --tls-key)")
    if not has_keys and settings.tls_client_ca is None:
        missing.append("keys (--api-key-file or DISTKV_API_KEY) or client certificates")
    if missing:
        raise ConfigError(
            f"host={settings.host} can be reached from other machines: it needs "
            f"{' and '.join(missing)}, or --insecure-public"
        )
