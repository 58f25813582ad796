"""When devices are lost or come, every request goes on where it was, on the parts that are new."""

import gc
import time
import weakref
from typing import Any

import pytest

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.parts import Parts
from distkv_jax.engine.request import Request
from distkv_jax.errors import RequestError, WorldLost
from tests.engine.fakes import FakeRunner, make_config, make_engine, make_parts, make_request
from tests.engine.test_engine import expected_tokens

NUM_BLOCKS = 4
"""Of an instance, with 4 tokens each."""


class FakeRenewal:
    """Makes parts of as many instances as it is told.

    Attributes:
        num_instances: Of the next parts; none left once it is 0.
        is_due: Whether there are others than those in use.
        is_lost: Whether those in use are gone.
        patience_s: As of a `Renewal`.
        num_made: How often it made some.
        held: Whether something still referred to the parts before.
    """

    def __init__(self) -> None:
        self.num_instances = 2
        self.is_due = self.is_lost = False
        self.patience_s = 60.0
        self.num_made = 0
        self.held: list[bool] = []
        self.old: weakref.ref[FakeRunner] | None = None

    def use(self, num_instances: int, *, is_lost: bool = True) -> None:
        self.num_instances, self.is_due, self.is_lost = num_instances, True, is_lost

    def renew(self) -> Parts:
        if self.old is not None:
            gc.collect()
            self.held.append(self.old() is not None)
        if not self.num_instances:
            raise WorldLost("nobody is left")
        self.is_due = self.is_lost = False
        self.num_made += 1
        return make_parts(make_config(num_blocks=NUM_BLOCKS), self.num_instances)


class Serving:
    """An engine over parts that may change, and the tokens that it gave."""

    def __init__(self) -> None:
        self.renewal = FakeRenewal()
        self.engine: Engine = make_engine(num_blocks=NUM_BLOCKS, renewal=self.renewal)
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], tuple[str, str | None]] = {}

    def submit(self, name: str, prompt: int, count: int | None, **settings: Any) -> Request:
        request = make_request(prompt, name, max_tokens=count, ignore_eos=True, **settings)
        self.engine.submit((request,))
        return request

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for update in self.engine.step():
                key = (update.request.request_id, update.index)
                self.tokens.setdefault(key, []).extend(update.token_ids)
                if update.finish_reason is not None:
                    assert key not in self.ends, "ended twice"
                    self.ends[key] = (update.finish_reason, update.error)

    def run(self) -> None:
        for _ in range(500):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work
        self.engine.coordinator.check_idle()


@pytest.mark.parametrize("num_instances", [1, 2, 3])
@pytest.mark.parametrize("after", range(5))
def test_every_token_comes_once_whenever_the_devices_change(num_instances: int, after: int) -> None:
    one = Serving()
    one.submit("a", 5, 8)
    one.submit("b", 3, 6, n=2)
    one.step(after)
    one.renewal.use(num_instances)
    one.run()

    assert one.tokens["a", 0] == expected_tokens(5, 8)
    assert one.tokens["b", 0] == one.tokens["b", 1] == expected_tokens(3, 6)
    assert one.engine.coordinator.num_instances == num_instances
    assert one.renewal.num_made == 1


def test_devices_that_come_again_and_again_keep_nobody_from_getting_on() -> None:
    one = Serving()
    one.submit("a", 5, 8)
    for _ in range(60):
        one.renewal.use(2, is_lost=False)
        one.step()

    assert one.tokens["a", 0] == expected_tokens(5, 8)
    assert one.renewal.num_made > 2


def test_losses_are_not_failures_of_what_ran() -> None:
    one = Serving()
    one.submit("a", 5, 8)
    for _ in range(10):
        one.renewal.use(2)
        one.engine._recover("a peer is gone")
    one.run()

    assert one.tokens["a", 0] == expected_tokens(5, 8)


def test_one_that_may_be_as_long_as_there_is_room_is_shorter_where_there_is_less() -> None:
    one = Serving()
    one.submit("a", 5, None)
    one.step(4)
    one.renewal.use(1)
    one.run()

    # Sixteen slots, and the last token needs none.
    assert one.tokens["a", 0] == expected_tokens(5, 12)
    assert one.ends["a", 0] == ("length", None)


def test_idle_devices_change_too() -> None:
    one = Serving()
    assert not one.engine.has_work
    one.renewal.use(3)

    assert one.engine.has_work
    one.run()
    assert one.engine.coordinator.num_instances == 3


def test_a_failed_step_takes_new_parts_since_what_connects_them_is_spoilt() -> None:
    one = Serving()
    one.submit("a", 5, 8)
    one.step(2)
    assert isinstance(one.engine.runner, FakeRunner)
    one.engine.runner.fail = 1
    one.run()

    assert one.renewal.num_made == 1
    assert one.tokens["a", 0] == expected_tokens(5, 8)


def test_nothing_refers_to_the_old_devices_while_there_are_none() -> None:
    one = Serving()
    one.submit("a", 5, 8)
    one.step(3)
    for fail in (0, 1):
        assert isinstance(one.engine.runner, FakeRunner)
        one.renewal.old = weakref.ref(one.engine.runner)
        one.engine.runner.fail = fail
        one.renewal.is_due = one.renewal.is_lost = not fail
        one.step()

    assert one.renewal.held == [False, False]


def test_one_that_does_not_fit_any_more_waits_and_goes_on_when_there_is_room() -> None:
    one = Serving()
    # More than one instance holds, and one that does not.
    one.submit("long", 20, 8)
    one.submit("short", 5, 6)
    one.step(4)
    one.renewal.use(1)
    one.step(40)
    given = list(one.tokens["long", 0])
    assert ("short", 0) in one.ends and ("long", 0) not in one.ends
    one.renewal.use(2)
    one.run()

    assert given == expected_tokens(20, len(given))
    assert one.tokens["long", 0] == expected_tokens(20, 8)


def test_one_that_waits_can_be_cancelled_and_has_its_deadline() -> None:
    one = Serving()
    one.submit("a", 20, 8)
    one.submit("b", 21, 8, deadline=time.monotonic() + 0.2)
    one.renewal.use(1)
    one.step(3)
    for update in one.engine.cancel("a"):
        assert update.finish_reason == "cancelled"
    one.run()

    assert one.ends["b", 0] == ("deadline", None)
    assert one.tokens.get(("a", 0), []) == []


def test_one_that_waits_in_vain_ends_with_the_numbers() -> None:
    one = Serving()
    one.renewal.patience_s = 0.1
    one.submit("a", 20, 8)
    one.renewal.use(1)
    one.run()

    reason, error = one.ends["a", 0]
    assert reason == "error"
    assert error == "the 1 instances that are left hold 16 KV slots for one request"


def test_what_does_not_fit_now_is_refused_now() -> None:
    one = Serving()
    one.renewal.use(1)
    one.step()

    with pytest.raises(RequestError, match="1 instances alone hold 16 for one request"):
        one.submit("a", 20, 8)


def test_a_world_that_is_lost_for_good_is_told() -> None:
    one = Serving()
    one.submit("a", 5, 8)
    one.step()
    one.renewal.use(0)

    with pytest.raises(WorldLost, match="nobody is left"):
        one.step()
