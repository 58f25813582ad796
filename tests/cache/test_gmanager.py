"""Creditors are proposed near ones first, then by lendable space, then by index."""

import pytest

from distkv_jax.cache.gmanager import Distance, GManager
from distkv_jax.cache.messages import Heartbeat
from distkv_jax.errors import ConfigError, InvariantError


def make_heartbeat(instance: int, lendable: int) -> Heartbeat:
    return Heartbeat(
        instance=instance,
        number=1,
        is_full=True,
        num_free=8,
        num_held=0,
        num_lendable=lendable,
    )


def make_gmanager(*lendable: int, distance: Distance | None = None) -> GManager:
    gmanager = GManager(len(lendable), distance)
    for instance, blocks in enumerate(lendable):
        gmanager.receive(make_heartbeat(instance, blocks))
    return gmanager


def test_most_lendable_space_comes_first_and_ties_go_to_the_lowest_index():
    assert make_gmanager(8, 2, 5, 2).propose_creditors(0, 100) == (2, 1, 3)


def test_near_creditors_come_before_roomy_ones():
    distance = [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]] * 2
    gmanager = make_gmanager(8, 7, 2, 6, distance=distance)

    assert gmanager.propose_creditors(0, 100) == (2, 1, 3)
    assert gmanager.propose_creditors(1, 100) == (3, 0, 2)


@pytest.mark.parametrize(
    "distance",
    [lambda a, b: float((b - a) % 3), [[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]]],
    ids=["function", "matrix"],
)
def test_distance_is_read_from_home_to_creditor(distance: Distance):
    gmanager = make_gmanager(8, 8, 8, distance=distance)

    assert gmanager.propose_creditors(0, 100) == (1, 2)
    assert gmanager.propose_creditors(1, 100) == (2, 0)


def test_home_and_instances_without_lendable_space_are_not_proposed():
    assert make_gmanager(8, 0, 3).propose_creditors(0, 1) == (2,)
    assert make_gmanager(8, 0, 0).propose_creditors(0, 1) == ()


def test_unheard_instance_is_not_proposed():
    gmanager = GManager(3)
    gmanager.receive(make_heartbeat(2, 1))

    assert gmanager.propose_creditors(0, 4) == (2,)


@pytest.mark.parametrize(
    ("count", "creditors"), [(0, ()), (1, (1,)), (4, (1,)), (5, (1, 2)), (7, (1, 2, 3))]
)
def test_list_ends_where_it_covers_the_count(count: int, creditors: tuple[int, ...]):
    assert make_gmanager(8, 4, 2, 1).propose_creditors(0, count) == creditors


def test_heartbeat_reaches_ledger_and_placement_map():
    gmanager = make_gmanager(8, 5)

    assert gmanager.ledger.row(1).num_lendable == 5
    assert gmanager.placement.heard(1) == 1


@pytest.mark.parametrize("instance", [-1, 2])
def test_heartbeat_of_an_unknown_instance_is_refused(instance: int):
    with pytest.raises(
        InvariantError, match=f"^heartbeat of instance {instance}, expected below 2$"
    ):
        make_gmanager(8, 8).receive(make_heartbeat(instance, 1))


@pytest.mark.parametrize("matrix", [[[0.0, 1.0]], [[0.0, 1.0], [1.0]]])
def test_distance_of_another_shape_is_refused(matrix: list[list[float]]):
    widths = [len(row) for row in matrix]
    with pytest.raises(ConfigError) as refused:
        GManager(2, matrix)

    assert str(refused.value) == f"distance has rows of {widths} columns, expected 2 of 2"
