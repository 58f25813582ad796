"""Clients that cancel, abort, are late, slow, malformed or killed cost a server nothing."""

import argparse
from typing import Any

import pytest

from benchmarks.soak import Sample, is_good, soak, trend


@pytest.mark.slow
def test_seconds_of_every_kind_of_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes; `python -m benchmarks.soak` is the same for ten minutes and 512 streams."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", ".cache/tests")
    args = argparse.Namespace(
        minutes=0.15, streams=48, clients=3, kill_every_s=3.0, serve=["--no-warm-up"]
    )
    found = soak(args)

    assert is_good(found), found
    assert found["clients_killed"] >= 2
    assert found["ended"] >= 48
    assert {"OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"} <= set(found["by_status"])
    # 48 clients have three connections; a descriptor a request would be hundreds.
    assert found["files_max"] < 60
    assert found["threads_max"] < 100


GOOD: dict[str, Any] = {
    "lost": 0,
    "server_exit_code": 0,
    "steps_until_free": 2,
    "by_status": {"OK": 9, "CANCELLED": 1},
}


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 1},
        {"server_exit_code": 1},
        {"steps_until_free": 3},
        {"by_status": {"UNKNOWN": 1}},
        {"by_status": {"INTERNAL": 1}},
        {"by_status": {"LOST": 1}},
    ],
)
def test_what_is_not_good(change: dict[str, Any]) -> None:
    assert is_good(GOOD)
    assert not is_good(GOOD | change)


def test_growth_is_that_of_the_second_half() -> None:
    early = [Sample(second, 100.0 * second, 9, 9) for second in range(60)]
    late = [Sample(60.0 + second, 50.0 + 2 * second / 60, 5, 7) for second in range(61)]
    found = trend([*early, *late])

    assert found["rss_mib_per_minute"] == pytest.approx(2.0)
    assert found["rss_mib_max"] == 5900
    assert (found["rss_mib_half"], found["rss_mib_end"]) == (50, 52)
    assert (found["threads_max"], found["threads_half"]) == (9, 5)
