"""The environment is read in one file, and refused when it is wrong."""

import os
from pathlib import Path

import pytest

from distkv_jax.environment import add_xla_flags, cache_folder
from distkv_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_cache_folder_prefers_its_own_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "distkv-jax"

    monkeypatch.setenv("DISTKV_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_cache_folder_is_under_home_where_nothing_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("DISTKV_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert cache_folder() == tmp_path / ".cache" / "distkv-jax"


def test_a_cache_folder_that_is_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("DISTKV_CACHE_DIR", str(file))

    with pytest.raises(ConfigError, match=f"DISTKV_CACHE_DIR={file} must be the absolute path of"):
        cache_folder()


def test_a_relative_cache_folder_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISTKV_CACHE_DIR", "cache")

    with pytest.raises(ConfigError, match="DISTKV_CACHE_DIR=cache must be the absolute path of"):
        cache_folder()


def test_xla_flags_keep_what_the_user_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=7 --xla_two")

    add_xla_flags({"xla_one": "1", "xla_two": "2", "xla_three": "3"})

    assert os.environ["XLA_FLAGS"] == "--xla_one=7 --xla_two --xla_three=3"


@pytest.mark.parametrize("top", ["distkv_jax", "pallas_kernels", "serve"])
def test_no_other_file_reads_the_environment(top: str):
    readers = {
        path.relative_to(ROOT)
        for path in (ROOT / top).rglob("*.py")
        if "os.environ" in path.read_text() or "getenv" in path.read_text()
    }

    assert readers <= {Path("distkv_jax/environment.py")}
