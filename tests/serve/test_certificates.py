"""A wrong certificate or key is one clear message, before anything listens or connects."""

import subprocess
from pathlib import Path

import pytest

from distkv_jax.errors import ConfigError
from serve.certificates import read_certificates
from serve.client import Client
from serve.server import check_settings
from serve.settings import ServerSettings

NEW = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pem")

    def make(name: str, *words: str) -> None:
        files = f"-keyout {name}.key -out {name}.pem -subj /CN={name}".split()
        command = ["openssl", *NEW.split(), *files, *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    make("good", "-nodes")
    make("other", "-nodes")
    make("locked", "-passout", "pass:secret")
    (folder / "junk.pem").write_text("-----BEGIN CERTIFICATE-----\njunk\n")
    (folder / "binary.pem").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.mark.parametrize(
    ("authority", "key", "cert", "message"),
    [
        (None, "other.key", "good.pem", "the key in other.key is not that of .* in good.pem"),
        (None, "good.key", "junk.pem", "junk.pem has no certificate in PEM form"),
        (None, "junk.pem", "good.pem", "junk.pem has no key in PEM form"),
        (None, "good.pem", "good.key", "good.key has no certificate in PEM form"),
        (None, "locked.key", "locked.pem", "locked.key has no key .* without a password"),
        ("junk.pem", "good.key", "good.pem", "junk.pem has no certificate in PEM form"),
        ("binary.pem", "good.key", "good.pem", "binary.pem has no certificate in PEM form"),
        ("good.key", None, None, "good.key has no certificate in PEM form"),
    ],
)
def test_a_wrong_file_is_named(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    authority: str | None,
    key: str | None,
    cert: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message):
        read_certificates(authority, key, cert)
    with pytest.raises(ConfigError, match=message):
        Client(tls_ca=authority, tls_key=key, tls_cert=cert)
    if key is not None:
        settings = ServerSettings(tls_client_ca=authority, tls_key=key, tls_cert=cert)
        with pytest.raises(ConfigError, match=message):
            check_settings(settings)


def test_right_files_are_read_as_they_are(folder: Path) -> None:
    files = [str(folder / name) for name in ("other.pem", "good.key", "good.pem")]

    assert read_certificates(*files) == tuple(Path(file).read_bytes() for file in files)
    assert read_certificates(None, None, None) == (None, None, None)
