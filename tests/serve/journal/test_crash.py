"""`kill -9` of a server under durable requests: all of them complete, and no token is another."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.errors import RequestNotFound
from serve.client import Client
from serve.journal.history import history_of
from serve.journal.store import NAME, read_kept
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.serve.journal.running import Process

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": dict(temperature=0),
    "seeded": dict(seed=11),
    "samples": dict(seed=12, n=2),
    "penalties": dict(temperature=0, frequency_penalty=2, presence_penalty=1),
    "logprobs": dict(seed=13, logprobs=2),
    "unseeded": dict(temperature=1.5),
}
PROMPT = list(range(40, 60))
LENGTH = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def process(model: Path, tmp_path: Path) -> Iterator[Process]:
    process = Process(model, tmp_path / "journal")
    yield process
    process.close()


class Reader:
    """Reads a durable stream in a thread, keeping every output it was given."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.outputs: list[RequestOutput] = []
        self.error: BaseException | None = None
        self.has_some = threading.Event()
        params = REQUESTS[name] | {"max_tokens": LENGTH, "ignore_eos": True}
        self._stream = client.stream(PROMPT, params, request_id=name, durable=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for output in self._stream:
                self.outputs.append(output)
                if output.outputs and len(output.outputs[0].token_ids) > 5:
                    self.has_some.set()
        except BaseException as error:
            self.error = error
            self.has_some.set()

    def join(self) -> RequestOutput:
        self._thread.join(120)
        assert self.error is None, self.error
        return self.outputs[-1]


def given(output: RequestOutput) -> list[tuple[list[int], str, str | None]]:
    return [(one.token_ids, one.text, one.finish_reason) for one in output.outputs]


def check_grows(reader: Reader) -> None:
    """What was given once is never taken back."""
    for before, after in zip(reader.outputs, reader.outputs[1:], strict=False):
        for one, other in zip(before.outputs, after.outputs, strict=False):
            assert other.token_ids[: len(one.token_ids)] == one.token_ids
            assert other.text.startswith(one.text)


def test_killed_under_load_every_request_completes_with_the_tokens_of_a_whole_run(
    process: Process, tmp_path: Path
) -> None:
    process.start()
    with Client(process.address, reattach_s=100) as client:
        readers = [Reader(client, name) for name in REQUESTS]
        for reader in readers:
            assert reader.has_some.wait(60)
        process.kill()
        seen = [len(reader.outputs[-1].outputs[0].token_ids) for reader in readers]
        # A few may have ended before the last one began; they are to be read again all the same.
        assert sum(0 < count < LENGTH for count in seen) >= 3, seen
        process.start()
        lasts = [reader.join() for reader in readers]

        assert re.search(r"going on with \d+ durable requests", "\n".join(process.lines))
        for reader, last in zip(readers, lasts, strict=True):
            check_grows(reader)
            assert last.finished
            assert len(last.outputs) == REQUESTS[reader.name].get("n", 1)
            assert all(len(one.token_ids) == LENGTH for one in last.outputs)
            # From every token on: what was left out and what came are the whole.
            (whole,) = last.outputs[:1]
            for offset in (0, 1, seen[0], LENGTH):
                *_, rest = client.attach(reader.name, offset)
                assert rest.finished
                tail = rest.outputs[0]
                assert whole.token_ids[offset:] == tail.token_ids
                assert whole.text.endswith(tail.text)
                assert tail.finish_reason == "length"
        # The same requests, uninterrupted, in the same server; the seed of one was drawn.
        for reader, last in zip(readers, lasts, strict=True):
            kept = read_kept(tmp_path / "journal" / NAME, "", reader.name)
            assert kept is not None
            params = history_of(kept, tmp_path).entry.params
            assert given(client.generate(PROMPT, params)) == given(last), reader.name
        usage = client.load()
        assert usage.num_requests == 0 and usage.num_free_blocks == usage.num_blocks
        with pytest.raises(RequestNotFound):
            next(client.attach("another"))
