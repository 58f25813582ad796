"""A world that cannot go on ends with a reason: who, which step, how far."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from distkv_jax.engine.commands import Reset
from distkv_jax.errors import WorldLost
from distkv_jax.world.digest import digest_of
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.world import leader as leader_module
from serve.world.wire import Wire
from tests.world.running import TIMEOUT_S, World, step, wait_until, world

IDS = np.arange(8, dtype=np.int32)
WIRE = Wire(num_blocks=4, num_slots=4, vocab_size=8)


def run_steps(one: World, count: int) -> None:
    """Run steps on both sides."""
    commands = one.link.commands(WIRE)
    for number in range(1, count + 1):
        one.leader.publish(step(number))
        one.leader.dispatched(number)
        assert next(commands).number == number
        one.link.dispatched(number)
        one.leader.read(number, IDS)
        one.link.read(number, digest_of(IDS))


def test_equal_tokens_go_on_and_a_stop_is_in_order() -> None:
    with world() as one:
        run_steps(one, 50)
        wait_until(lambda: one.leader._epoch.members[1].read == 50, "all was read")
        stopped = threading.Thread(target=lambda: list(one.link.commands(WIRE)))
        stopped.start()
        one.leader.close()
        stopped.join(10)

        assert not stopped.is_alive()
        assert (one.lost, one.follower_lost) == ([], [])


def test_a_divergence_names_step_ranks_and_both_digests() -> None:
    with world() as one:
        run_steps(one, 3)
        one.leader.publish(step(4))
        one.leader.read(4, IDS)
        one.link.read(4, digest_of(IDS + 1))
        wait_until(lambda: one.lost, "it is lost")

        ours, theirs = digest_of(IDS).hex(), digest_of(IDS + 1).hex()
        assert one.text.startswith(
            f"step 4 diverged: rank 0 has tokens of digest {ours}, rank 1 of {theirs}"
        )
        with pytest.raises(WorldLost, match="step 4 diverged"):
            one.leader.publish(step(5))
        # The other side hears why.
        wait_until(lambda: one.follower_lost, "the other side hears of it")
        assert "step 4 diverged" in str(one.follower_lost[0])


def test_a_silent_rank_is_named_with_its_step() -> None:
    with world(heartbeat_timeout_s=0.8) as one:
        run_steps(one, 3)
        wait_until(lambda: one.leader._epoch.members[1].read == 3, "all was read")
        # What SIGSTOP does: no report, and nothing is closed.
        begin = time.monotonic()
        one.link._lock.acquire()
        one.leader.publish(step(4))
        wait_until(lambda: one.lost, "it is lost")
        one.link._lock.release()

        assert time.monotonic() - begin < 5
        assert one.text.startswith("rank 1 has been silent for ")
        assert "step 4, published" in one.text
        assert "rank 1 was sent it and has not received it" in one.text


def test_a_step_that_moves_nowhere_is_named_with_its_stage() -> None:
    with world(stuck_timeout_s=0.5) as one:
        commands = one.link.commands(WIRE)
        one.leader.publish(step(1))
        one.leader.dispatched(1)
        one.link.dispatched(next(commands).number)
        wait_until(lambda: one.lost, "it is lost")

        assert one.text.startswith("nothing has moved for ")
        assert "step 1, published" in one.text
        assert "rank 0 started it and waits for its tokens" in one.text
        assert "rank 1 started it and waits for its tokens" in one.text


def test_an_idle_world_is_not_stuck() -> None:
    with world(stuck_timeout_s=0.2, heartbeat_timeout_s=0.8) as one:
        run_steps(one, 2)
        begin = time.monotonic()
        wait_until(lambda: time.monotonic() - begin > 1.5, "time passes")

        assert (one.lost, one.follower_lost) == ([], [])


def test_a_closed_connection_is_told_at_once() -> None:
    with world() as one:
        begin = time.monotonic()
        one.channel.close()
        wait_until(lambda: one.lost, "it is lost")

        assert "rank 1 has gone, its connection was closed" in one.text
        assert time.monotonic() - begin < 2


def test_a_silent_leader_ends_who_follows() -> None:
    with world(heartbeat_timeout_s=0.8) as one:
        # It sends nothing any more and closes nothing.
        blocked = Blocked()
        one.leader._epoch.members[1].outbox = blocked  # pyright: ignore[reportAttributeAccessIssue]
        wait_until(lambda: one.follower_lost, "it is lost")
        blocked.may_go.set()

        assert "rank 1 has heard nothing of rank 0 for" in str(one.follower_lost[0])


class Blocked:
    """An outbox out of which nothing comes."""

    def __init__(self) -> None:
        self.may_go = threading.Event()

    def get(self, timeout: float) -> pb.Order:
        self.may_go.wait(TIMEOUT_S)
        return pb.Order(beat=pb.Beat())

    def put(self, order: pb.Order) -> None:
        pass


def test_who_cannot_go_on_says_why() -> None:
    with world() as one:
        one.link.failed(0, "num_blocks=9 at the leader, 8 fit here")
        wait_until(lambda: one.lost, "it is lost")

        assert "rank 1 cannot go on: num_blocks=9 at the leader, 8 fit here" in one.text


def test_a_step_that_failed_there_alone_ends_the_world() -> None:
    with world(heartbeat_timeout_s=0.8) as one:
        one.leader.publish(step(1))
        one.link.failed(1, "a device burnt down")
        wait_until(lambda: one.lost, "it is lost")

        assert "rank 1 failed at command 1: a device burnt down" in one.text


def test_a_step_that_failed_everywhere_is_followed_by_a_reset() -> None:
    with world(heartbeat_timeout_s=0.8, stuck_timeout_s=0.6) as one:
        commands = one.link.commands(WIRE)
        one.leader.publish(step(1))
        assert next(commands).number == 1
        one.link.failed(1, "a device burnt down")
        done = in_thread(lambda: one.leader.publish(Reset(2)))
        assert next(commands) == Reset(2)
        assert not done.is_set()
        one.link.dispatched(2)
        assert done.wait(10)
        begin = time.monotonic()
        wait_until(lambda: time.monotonic() - begin > 1.2, "time passes")

        assert one.lost == []


def test_commands_far_ahead_of_the_slowest_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "MAX_AHEAD", 3)
    with world() as one:
        for number in (1, 2, 3):
            one.leader.publish(step(number))
        done = in_thread(lambda: one.leader.publish(step(4)))
        assert not done.wait(0.2)
        one.link.dispatched(1)

        assert done.wait(10)


def in_thread(work: Callable[[], None]) -> threading.Event:
    """Run something that waits; the event says that it is done."""
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done
