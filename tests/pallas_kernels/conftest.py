"""What is checked around every test of a kernel that is simulated."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def fails_on_races(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail if the TPU simulation's race detector speaks; it has no other public voice."""
    yield
    printed = capfd.readouterr().out
    assert "RACE DETECTED" not in printed, printed


@pytest.fixture(autouse=True)
def simulated_without_races(request: pytest.FixtureRequest) -> None:
    """Listen to the race detector in the shared suite."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("implementation") == "tpu-interpret":
        request.getfixturevalue("fails_on_races")
