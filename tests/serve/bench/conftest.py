"""A server that does what a test tells it, a tokenizer, and no key of the person who tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from tests.serve.bench.fake_server import FakeServer
from tests.serve.running import Loop


@pytest.fixture(autouse=True)
def no_openai_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def fake(loop: Loop) -> Iterator[FakeServer]:
    server = FakeServer(loop)
    yield server
    server.close()


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the words w0 to w99 and a special one, whose id is 100."""
    words = {f"w{number}": number for number in range(100)}
    inner = tokenizers.Tokenizer(models.WordLevel({**words, "<unk>": 100}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<unk>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    inner.save(str(path))
    return path
