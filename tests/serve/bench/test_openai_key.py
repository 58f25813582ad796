"""Which key goes to a server over HTTP, and over which ways: none to strangers, none unread."""

from pathlib import Path

import pytest

from distkv_jax.errors import ConfigError
from serve.bench.openai_backend import connection_of, headers_of
from serve.client_settings import ClientSettings

OURS, THEIRS, GIVEN = (f"{name}-0123456789abcdef" for name in ("ours", "theirs", "given"))
CLEAR = "is another machine: the API key would be sent in the clear"


def header(base: str, **settings: object) -> str | None:
    """The key that would be sent."""
    connection = connection_of(base, ClientSettings(server=base, **settings))  # type: ignore[arg-type]
    return headers_of(connection).get("Authorization", "").removeprefix("Bearer ") or None


@pytest.mark.parametrize(
    ("base", "server", "is_local", "has_tls"),
    [
        ("https://gpu7:8000", "gpu7:8000", False, True),
        ("http://localhost", "localhost:80", True, False),
        ("http://[::1]:8000/api", "[::1]:8000", True, False),
        ("https://127.0.0.1", "127.0.0.1:443", True, True),
        ("http://evil.example/localhost:1", "evil.example:80", False, False),
        ("http://localhost:1@evil.example", "evil.example:80", False, False),
    ],
)
def test_a_url_says_where_and_how(base: str, server: str, is_local: bool, has_tls: bool) -> None:
    found = connection_of(base, ClientSettings(server=base))
    assert (found.server, found.is_local, found.has_tls) == (server, is_local, has_tls)


def test_certificates_do_not_make_a_clear_way_encrypted() -> None:
    with pytest.raises(ConfigError, match=f"server=gpu7:80 {CLEAR}"):
        header("http://gpu7", api_key=GIVEN, tls_ca="ca.pem")


@pytest.mark.parametrize("base", ["gpu7:8000", "ftp://gpu7", "http://", "http://gpu7:no"])
def test_what_is_no_url_is_told(base: str) -> None:
    with pytest.raises(ConfigError, match="must begin with http:// or https:// and have a host"):
        connection_of(base, ClientSettings(server=base))


def test_the_key_given_counts_then_openais_then_ours_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISTKV_API_KEY", OURS)
    file = tmp_path / "key"
    file.write_text(GIVEN)
    file.chmod(0o600)
    for base in ("http://localhost:1", "https://gpu7"):
        assert header(base, api_key_file=str(file)) == GIVEN
    assert header("http://localhost:1") == OURS
    # A server of anybody: our key is for ours.
    assert header("https://gpu7") is None
    assert header("http://evil.example/localhost:1") is None

    monkeypatch.setenv("OPENAI_API_KEY", THEIRS)
    assert header("http://localhost:1") == THEIRS
    assert header("https://gpu7") == THEIRS
    with pytest.raises(ConfigError, match=CLEAR):
        header("http://gpu7")
    assert header("http://gpu7", insecure=True) == THEIRS
