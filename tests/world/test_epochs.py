"""The loss of a rank ends its epoch and not the world; whoever is left or comes begins the next.

Real sockets, no devices: what enters JAX's world is replaced.
"""

import threading
from collections.abc import Iterator

import pytest

from distkv_jax.errors import ConfigError, Unavailable, WorldLost
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.proto.distkv.internal.v1 import world_pb2_grpc as pb_grpc
from serve.world.epoch import Epoch
from serve.world.follow import connect, join
from serve.world.link import Link
from serve.world.members import Member
from serve.world.settings import WorldSettings
from tests.world.running import TIMEOUT_S, TOKEN, World, settings_of, step, wait_until, world


class FakeEntrance:
    """Enters nothing; notes for whom somebody would stand in."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.stood_in: list[int] = []
        self.losses = 0

    def enter(self, epoch: Epoch) -> None:
        self.entered.append(epoch.number)
        if self.losses:
            self.losses -= 1
            raise WorldLost("a member was lost on the way")

    def without(self, epoch: Epoch, member: Member) -> None:
        self.stood_in.append(member.rank)

    def drop_devices(self) -> None:
        pass

    def leave(self) -> None:
        pass


@pytest.fixture
def one() -> Iterator[World]:
    with world(heartbeat_timeout_s=1.0) as one:
        surviving(one)
        yield one


def surviving(one: World) -> None:
    """Have the world go on when a rank is lost."""
    one.leader._entrance = FakeEntrance()  # pyright: ignore[reportAttributeAccessIssue]
    one.leader.on_fenced = lambda rank, pid: one.fenced.append((rank, pid))
    one.leader.on_due = lambda: None


class Comer:
    """A process that asks to be let in, on a thread of its own."""

    def __init__(self, settings: WorldSettings) -> None:
        self.told: list[pb.JoinResponse | Exception] = []
        self.channel = connect(settings)
        self.stub = pb_grpc.WorldStub(self.channel)
        self.settings = settings
        self._thread = threading.Thread(target=self._come, daemon=True)
        self._thread.start()

    def joined(self) -> pb.JoinResponse:
        self._thread.join(TIMEOUT_S)
        (told,) = self.told
        if isinstance(told, Exception):
            raise told
        return told

    def _come(self) -> None:
        try:
            self.told.append(join(self.stub, self.settings, {"version": "1"}, TOKEN))
        except (ConfigError, Unavailable) as error:
            self.told.append(error)


def comer_of(one: World) -> Comer:
    return Comer(settings_of(one.port, rank=1))


def test_a_lost_rank_ends_the_epoch_and_is_fenced_off(one: World) -> None:
    one.leader.publish(step(1))
    one.channel.close()
    wait_until(lambda: one.fenced, "it is fenced off")

    assert one.leader.is_due
    assert [rank for rank, _ in one.fenced] == [1]
    assert one.fenced[0][1] > 0
    with pytest.raises(WorldLost, match="rank 1 has gone, its connection was closed; step 1"):
        one.leader.publish(step(2))
    assert one.lost == []


def test_a_leader_alone_goes_on_in_the_next_epoch(one: World) -> None:
    one.channel.close()
    wait_until(lambda: one.leader.is_due, "it is due")

    assert one.leader.reform() == 1
    assert one.leader.epoch == 2
    assert not one.leader.is_due
    one.leader.begin(num_blocks=4, implementation="xla")
    one.leader.publish(step(1))


def test_one_that_comes_back_is_in_the_next_epoch_at_another_address(one: World) -> None:
    one.channel.close()
    wait_until(lambda: one.leader.is_due, "it is due")
    one.leader.reform()
    comer = comer_of(one)
    wait_until(lambda: one.leader.is_due, "it is due again")

    assert one.leader.reform() == 2
    joined = comer.joined()
    assert (joined.epoch, joined.num_processes, joined.process_id) == (3, 2, 1)
    assert joined.jax_coordinator != f"127.0.0.1:{one.port + 1}"
    comer.channel.close()


def test_who_is_left_is_told_to_come_again(one: World) -> None:
    forming = threading.Thread(target=one.leader.reform)
    forming.start()
    one.link.wait_end()
    assert one.link.is_reforming
    # It lets go of its devices, hangs up, and comes.
    one.link.close()
    comer = comer_of(one)
    forming.join(TIMEOUT_S)

    assert comer.joined().epoch == 2
    assert one.fenced == []
    comer.channel.close()


def test_one_that_does_not_leave_an_epoch_is_fenced_off(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorldSettings, "leave_s", 0.5)
    one.link.set_stage(pb.STAGE_READY)

    assert one.leader.reform() == 1
    assert [rank for rank, _ in one.fenced] == [1]
    # It hears why, should it ever go on.
    wait_until(lambda: not one.link._call.is_active(), "it was told")
    assert "rank 1 did not leave within 0.5 s" in one.link._call.details()


def test_the_hosts_that_are_lost_are_told_to_who_is_left(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[set[str]] = []
    monkeypatch.setattr("serve.world.leader.cut", lambda lost: cut.append(set(lost)))
    monkeypatch.setattr("serve.world.leader.own_addresses", lambda host, port: {"10.0.0.1"})
    told: list[list[str]] = []
    monkeypatch.setattr("serve.world.link.cut", lambda lost: told.append(list(lost)))
    lost = Member(2, addresses=frozenset({"10.0.0.1", "10.0.0.3"}), is_silent=True)
    one.leader._epoch.members[2] = lost

    one.leader._lose("rank 2 has been silent", lost)
    wait_until(lambda: ["10.0.0.3"] in told, "it is told")
    # Not of this host itself, where others live on.
    assert cut == [{"10.0.0.3"}]


def test_a_leader_that_never_gets_its_devices_back_ends_the_world(one: World) -> None:
    # Whoever waits for a host inside a collective, and should not, cannot be helped.
    object.__setattr__(one.leader._settings, "stuck_timeout_s", 0.5)
    one.link.set_stage(pb.STAGE_READY)
    one.leader._finish_epoch(WorldLost("epoch 1 is over"))
    wait_until(lambda: one.lost, "it is lost")

    assert "rank 0 did not leave within" in one.text


def test_one_that_compiles_has_longer_to_leave(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorldSettings, "leave_s", 0.2)
    one.link.set_stage(pb.STAGE_COMPILING)
    forming = threading.Thread(target=one.leader.reform)
    forming.start()
    forming.join(1.5)

    assert forming.is_alive()
    assert one.fenced == []
    one.channel.close()
    forming.join(TIMEOUT_S)
    assert not forming.is_alive()


def test_one_that_leaves_and_does_not_come_is_done_without(one: World) -> None:
    forming = threading.Thread(target=one.leader.reform)
    forming.start()
    one.link.wait_end()
    one.link.close()
    forming.join(TIMEOUT_S)

    assert not forming.is_alive()
    assert [rank for rank, _ in one.fenced] == [1]


def test_an_epoch_that_is_lost_on_the_way_is_followed_by_another(one: World) -> None:
    entrance = one.leader._entrance
    assert isinstance(entrance, FakeEntrance)
    entrance.losses = 2
    one.channel.close()
    wait_until(lambda: entrance.stood_in, "somebody stands in")

    assert one.leader.reform() == 1
    assert entrance.entered == [2, 3, 4]
    assert entrance.stood_in == [1]


@pytest.mark.parametrize("comes_again", [False, True])
def test_what_belongs_to_an_epoch_that_is_over_is_refused(one: World, comes_again: bool) -> None:
    one.channel.close()
    wait_until(lambda: one.leader.is_due, "it is due")
    comer = comer_of(one) if comes_again else None
    if comer is not None:
        wait_until(lambda: one.leader._roll_call.waiting == {1}, "it waits")
    assert one.leader.reform() == 1 + comes_again
    told: list[WorldLost] = []
    settings = settings_of(one.port, rank=1)
    with connect(settings) as channel:
        # One that was stopped, and is not any more.
        old = pb.JoinResponse(epoch=1, heartbeat_timeout_s=1)
        Link(pb_grpc.WorldStub(channel), settings, TOKEN, old, told.append)
        wait_until(lambda: told, "it is told")

    assert "rank 1 of epoch 1 does not belong to epoch 2" in str(told[0])
    if comer is not None:
        comer.channel.close()


def test_what_belongs_to_another_world_is_refused_though_its_epochs_count_alike(
    one: World,
) -> None:
    told: list[WorldLost] = []
    settings = settings_of(one.port, rank=1)
    with connect(settings) as channel:
        old = pb.JoinResponse(epoch=1, heartbeat_timeout_s=1, member=7)
        Link(pb_grpc.WorldStub(channel), settings, TOKEN, old, told.append)
        wait_until(lambda: told, "it is told")

    assert "rank 1 of epoch 1 does not belong to epoch 1" in str(told[0])


def test_a_rank_that_is_still_here_does_not_come_twice(one: World) -> None:
    with pytest.raises(ConfigError, match="rank 1 is here already"):
        comer_of(one).joined()


def test_a_divergence_ends_the_world_all_the_same(one: World) -> None:
    one.leader._lose("step 4 diverged", None)

    assert "step 4 diverged" in one.text
    assert not one.leader.is_due
    with pytest.raises(WorldLost, match="step 4 diverged"):
        one.leader.reform()
    with pytest.raises(ConfigError, match="the world was closed: step 4 diverged"):
        comer_of(one).joined()
