"""One server with an HTTP door for these tests; each test leaves it empty."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from distkv_jax.llm import LLM
from tests.serve.conftest import check_empty
from tests.serve.http.asking import client_of
from tests.serve.running import Loop, Running, running


@pytest.fixture(scope="session")
def shared_door(loop: Loop, llm: LLM) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DISTKV_API_KEY", raising=False)
        with running(loop, llm, http_port=0) as service:
            yield service


@pytest.fixture
def door(shared_door: Running) -> Iterator[Running]:
    """The shared server with HTTP; nothing of a test may be left in it."""
    yield shared_door
    check_empty(shared_door)


@pytest.fixture
def client(door: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which does not try again."""
    with client_of(door) as client:
        yield client


@pytest.fixture
def body() -> dict[str, Any]:
    """A completion of six tokens."""
    return {"model": "small", "prompt": "hello", "max_tokens": 6, "temperature": 0}
