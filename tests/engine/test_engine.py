"""Every request ends once, by whatever end comes first, and its blocks are free then."""

import random
import time
from typing import Any

import pytest

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.outputs import RequestOutput, Update, apply_update, new_output
from distkv_jax.engine.request import Request
from distkv_jax.errors import InvariantError, QueueFull, RequestError
from tests.engine.fakes import FakeRunner, make_engine, make_request, token_at

NUM_BLOCKS = 8
"""Of both instances together, with 4 tokens each."""


class Serving:
    """Runs an engine and puts together what it gives.

    Attributes:
        outputs: By name of the request.
        ends: How often each sample's end was heard.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine or make_engine()
        self.outputs: dict[str, RequestOutput] = {}
        self.ends: dict[tuple[str, int], int] = {}

    @property
    def runner(self) -> FakeRunner:
        assert isinstance(self.engine.runner, FakeRunner)
        return self.engine.runner

    def submit(self, *requests: Request) -> None:
        self.engine.submit(requests)
        self.outputs |= {request.request_id: new_output(request) for request in requests}

    def hear(self, updates: list[Update]) -> None:
        for update in updates:
            name = update.request.request_id
            apply_update(self.outputs[name], update, time.monotonic())
            if update.finish_reason is not None:
                key = (name, update.index)
                self.ends[key] = self.ends.get(key, 0) + 1

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.hear(self.engine.step())

    def run(self) -> None:
        """Step until idle; every submitted sample has ended once then."""
        for _ in range(500):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "livelock"
        expected = {
            (name, sample.index)
            for name, output in self.outputs.items()
            for sample in output.outputs
        }
        assert self.ends == dict.fromkeys(expected, 1)
        assert self.engine.coordinator.num_free == NUM_BLOCKS
        assert self.engine.num_running == self.engine.num_waiting == 0

    def reasons(self, name: str) -> list[str | None]:
        return [sample.finish_reason for sample in self.outputs[name].outputs]

    def tokens(self, name: str) -> list[int]:
        return self.outputs[name].outputs[0].token_ids


def expected_tokens(prompt_len: int, count: int) -> list[int]:
    return [token_at(prompt_len, prompt_len + at) for at in range(count)]


def request(name: str, prompt: int = 5, **params: Any) -> Request:
    settings: dict[str, Any] = dict(max_tokens=6, ignore_eos=True)
    return make_request(prompt, name, **(settings | params))


def test_requests_are_served_and_counted() -> None:
    serving = Serving()
    serving.submit(request("a", 5), request("b", 9, max_tokens=3))
    serving.run()

    assert serving.tokens("a") == expected_tokens(5, 6)
    assert serving.tokens("b") == expected_tokens(9, 3)
    assert serving.reasons("a") == ["length"]
    stats = serving.engine.stats
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (14, 9)
    # The last token of each is sampled and never computed.
    assert stats.num_computed_tokens == 14 + 9 - 2
    assert stats.num_failed_steps == stats.num_preemptions == 0
    assert stats.host_s > 0


def test_a_request_of_the_whole_mesh_is_on_both_instances() -> None:
    serving = Serving()
    serving.submit(request("long", 30, max_tokens=3))
    serving.run()

    output = serving.outputs["long"]
    assert output.instances_used == (0, 1)
    assert output.remote_kv_tokens == 16
    assert serving.engine.stats.num_spanning_steps > 0


def test_preempted_requests_end_with_all_their_tokens() -> None:
    serving = Serving()
    names = [f"r{number}" for number in range(4)]
    serving.submit(*(request(name, 4 + at, max_tokens=16) for at, name in enumerate(names)))
    serving.run()

    assert serving.engine.stats.num_preemptions > 0
    for at, name in enumerate(names):
        assert serving.tokens(name) == expected_tokens(4 + at, 16)


def test_a_slot_is_set_again_after_a_preemption() -> None:
    serving = Serving()
    names = [f"r{number}" for number in range(4)]
    serving.submit(*(request(name, 6, max_tokens=16, presence_penalty=1) for name in names))
    serving.run()

    assert len(serving.runner.slots) == 4 + serving.engine.stats.num_preemptions


def test_cancel_frees_blocks_at_once_and_what_was_in_flight_is_dropped() -> None:
    serving = Serving()
    serving.submit(request("a", max_tokens=20), request("b"))
    serving.step(3)
    tokens = list(serving.tokens("a"))
    held = NUM_BLOCKS - serving.engine.coordinator.num_free

    serving.hear(serving.engine.cancel("a"))

    assert NUM_BLOCKS - serving.engine.coordinator.num_free < held
    assert serving.reasons("a") == ["cancelled"]
    serving.run()
    assert serving.tokens("a") == tokens
    assert serving.tokens("b") == expected_tokens(5, 6)


def test_cancel_reaches_queued_preempted_and_unknown_requests() -> None:
    serving = Serving()
    serving.submit(*(request(f"r{number}", 7, max_tokens=16) for number in range(6)))
    while not serving.engine.stats.num_preemptions:
        serving.step()

    for name in ("r5", "r3", "r2", "r3", "nobody"):
        serving.hear(serving.engine.cancel(name))
    serving.run()

    assert [serving.reasons(f"r{number}")[0] for number in range(6)] == [
        "length",
        "length",
        "cancelled",
        "cancelled",
        "length",
        "cancelled",
    ]


def test_cancel_ends_every_sample() -> None:
    serving = Serving()
    serving.submit(request("a", 9, n=6, max_tokens=20))
    serving.step(4)
    serving.hear(serving.engine.cancel("a"))
    serving.run()

    assert serving.reasons("a") == ["cancelled"] * 6


def test_a_deadline_ends_a_running_request_with_what_it_has() -> None:
    serving = Serving()
    # Long enough for a few steps of the fake device, on a busy machine too.
    serving.submit(request("a", deadline=time.monotonic() + 0.5, max_tokens=24), request("b"))
    serving.step(4)
    has = len(serving.tokens("a"))
    time.sleep(0.6)
    serving.run()

    assert serving.reasons("a") == ["deadline"]
    assert len(serving.tokens("a")) == has > 0
    assert serving.reasons("b") == ["length"]


def test_a_deadline_ends_a_queued_request_that_is_never_prefilled() -> None:
    serving = Serving()
    busy = [request(f"busy{number}", 7, max_tokens=9) for number in range(4)]
    late = request("late", deadline=time.monotonic() - 1)
    serving.submit(*busy, late)
    serving.run()

    assert serving.reasons("late") == ["deadline"]
    assert serving.tokens("late") == []
    output = serving.outputs["late"]
    assert output.instances_used == ()
    assert serving.engine.stats.num_computed_tokens < 4 * 16 + 4 * 9


def test_a_deadline_that_is_not_reached_changes_nothing() -> None:
    serving = Serving()
    serving.submit(request("a", deadline=time.monotonic() + 1000))
    serving.run()

    assert serving.reasons("a") == ["length"]


def test_none_of_several_is_queued_when_one_is_refused() -> None:
    serving = Serving(make_engine(max_num_queued_reqs=3))
    serving.submit(request("a"))

    with pytest.raises(RequestError, match="request_id 'a' is in use by a live request"):
        serving.engine.submit((request("b"), request("a")))
    with pytest.raises(QueueFull, match="3 requests behind 1 waiting, limit 3"):
        serving.engine.submit(tuple(request(name) for name in "bcd"))

    assert serving.engine.num_waiting == 1
    serving.run()
    serving.submit(request("a"), request("b"))


def test_a_failed_step_loses_no_token() -> None:
    """Whichever step it is, also one that preempts."""
    fail_at = 0
    while True:
        serving = Serving()
        serving.submit(*(request(f"r{at}", 4 + at, max_tokens=12) for at in range(4)))
        serving.step(fail_at)
        serving.runner.fail = 1
        serving.run()
        for at in range(4):
            assert serving.tokens(f"r{at}") == expected_tokens(4 + at, 12)
        if not serving.engine.stats.num_failed_steps:
            break
        assert serving.runner.num_resets == serving.engine.stats.num_failed_steps == 1
        fail_at += 1
    assert fail_at > 12
    assert serving.engine.stats.num_preemptions > 0


def test_steps_that_keep_failing_end_what_ran_with_the_cause_and_the_next_is_served() -> None:
    serving = Serving(make_engine(max_step_failures=2, max_num_seqs=1))
    serving.submit(request("a"), request("b"))
    serving.step(2)
    # Three for the first, and one for the second, which starts with patience of its own.
    serving.runner.fail = 4
    serving.run()

    assert serving.reasons("a") == ["error"]
    assert serving.outputs["a"].error == "steps kept failing: a device burnt down"
    assert serving.tokens("b") == expected_tokens(5, 6)
    assert serving.engine.stats.num_failed_steps == 4


def test_failures_in_between_do_not_add_up() -> None:
    serving = Serving(make_engine(max_step_failures=1))
    serving.submit(request("a", max_tokens=20))
    for _ in range(5):
        serving.runner.fail = 1
        serving.step(4)
    serving.run()

    assert serving.engine.stats.num_failed_steps == 5
    assert serving.tokens("a") == expected_tokens(5, 20)


def test_a_step_that_can_bring_nothing_is_a_broken_promise() -> None:
    engine = make_engine()
    engine.submit((request("a"),))
    for rmanager in engine.coordinator.rmanagers:
        rmanager.lendable = lambda home: 0

    with pytest.raises(
        InvariantError, match="nothing can run: 0 waiting, 1 running, 8 blocks free"
    ):
        engine.step()


def test_a_leak_is_found_when_idle_and_at_the_end() -> None:
    serving = Serving()
    serving.submit(request("a"))
    serving.step(2)
    serving.engine.coordinator.open(("leak", 0), "leak", 0)

    with pytest.raises(InvariantError, match="idle with 1 open sequences and 0 of 8 blocks held"):
        serving.run()
    with pytest.raises(InvariantError, match="idle with 1 open sequences"):
        serving.engine.close()


def test_close_cancels_what_is_left() -> None:
    serving = Serving()
    serving.submit(request("a", n=2), request("b"))
    serving.step(3)

    serving.hear(serving.engine.close())

    assert serving.reasons("a") == ["cancelled"] * 2
    assert serving.reasons("b") == ["cancelled"]
    assert not serving.engine.has_work


@pytest.mark.parametrize("seed", range(10))
def test_random_histories_with_every_kind_of_end(seed: int) -> None:
    rng = random.Random(seed)
    serving = Serving(make_engine(max_num_seqs=rng.choice([1, 3, 4])))
    for number in range(12):
        prompt, max_tokens = rng.randint(1, 20), rng.randint(1, 12)
        serving.submit(
            request(
                f"r{number}",
                prompt,
                max_tokens=max_tokens,
                n=rng.choice([1, 1, 3]),
                deadline=rng.choice([None, None, None, time.monotonic()]),
                stop=rng.choice([None, chr(40)]),
                prompt_logprobs=rng.choice([None, 1]),
                presence_penalty=rng.choice([0, 1]),
            )
        )
        serving.runner.fail = rng.choice([0, 0, 0, 1])
        serving.step(rng.randint(0, 3))
        if rng.random() < 0.3:
            serving.hear(serving.engine.cancel(f"r{rng.randint(0, number)}"))
    serving.runner.fail = 0
    serving.run()

    for name, output in serving.outputs.items():
        prompt_len = len(output.prompt_token_ids)
        for sample in output.outputs:
            assert sample.token_ids == expected_tokens(prompt_len, len(sample.token_ids)), name
