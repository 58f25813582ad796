"""Whether there are traces: they need an optional extra, which is looked for before loading."""

from typing import TYPE_CHECKING

from distkv_jax.errors import ConfigError

if TYPE_CHECKING:
    from serve.observe.spans import Spans


def check_tracing(endpoint: str | None) -> None:
    """Refuse an address that traces cannot be sent to.

    Raises:
        ConfigError: It is no URL, or the extra is not installed.
    """
    if endpoint is None:
        return
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"otlp_traces_endpoint={endpoint!r} must begin with http:// or https://, "
            "such as http://localhost:4317"
        )
    try:
        import serve.observe.spans  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"otlp_traces_endpoint needs the package {error.name}: pip install 'distkv-jax[otel]'"
        ) from error


def open_tracing(endpoint: str | None, *, model: str) -> "Spans | None":
    """Begin to send traces; None where nobody asked for any.

    Args:
        endpoint: Address of an OTLP collector that speaks gRPC; http:// is without TLS.
        model: As the server calls it.

    Raises:
        ConfigError: As `check_tracing`.
    """
    check_tracing(endpoint)
    if endpoint is None:
        return None
    from serve.observe.spans import Spans, exporter_to

    return Spans(exporter_to(endpoint), model=model)
