"""One small engine and one server for all tests of the service; each test leaves both empty."""

from collections.abc import Iterator

import pytest

from distkv_jax.cache.performance import Profile
from distkv_jax.llm import LLM
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.serve.running import Loop, Running, running, wait_until


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Two instances of 48 blocks of 8 tokens, up to 8 sequences at once."""
    folder = write_text_checkpoint(tmp_path_factory.mktemp("model"))
    # Measuring one takes time, and a busy machine can make one that is refused.
    profile = tmp_path_factory.mktemp("profile") / "linear.json"
    Profile.linear().save(profile)
    with LLM(
        folder,
        mesh="cpu-2",
        dtype="float32",
        block_size=8,
        num_blocks=48,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_num_queued_reqs=40,
        max_num_queued_tokens=400,
        step_profile=str(profile),
    ) as llm:
        yield llm


@pytest.fixture(scope="session")
def shared(loop: Loop, llm: LLM) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DISTKV_API_KEY", raising=False)
        with running(loop, llm) as service:
            yield service


@pytest.fixture(autouse=True)
def no_key_of_the_person_who_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTKV_API_KEY", raising=False)


@pytest.fixture
def service(shared: Running) -> Iterator[Running]:
    """The shared server; nothing of a test may be left in it."""
    yield shared
    check_empty(shared)


def check_empty(service: Running) -> None:
    """Wait until no request is under way, and see that nothing is held for one."""
    wait_until(lambda: not service.server.dispatcher.quota.num_requests, "requests end")
    assert service.server.dispatcher.quota.num_waiting_tokens == 0
    assert [one.free for one in service.llm.pool().usage] == [48, 48]
    assert service.llm.pool().placement == {}
