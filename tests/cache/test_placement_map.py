"""The placement map follows changes without a gap, or waits to hear everything again."""

from distkv_jax.cache.messages import Entry, Heartbeat
from distkv_jax.cache.placement import PlacementMap


def make_heartbeat(
    instance: int, number: int, *entries: tuple[str, int, int], is_full: bool = False
) -> Heartbeat:
    return Heartbeat(
        instance=instance,
        number=number,
        is_full=is_full,
        num_free=0,
        num_held=0,
        num_lendable=0,
        entries=tuple(
            Entry(request_id=request_id, home=home, num_blocks=num_blocks)
            for request_id, home, num_blocks in entries
        ),
    )


def test_request_is_found_on_every_instance_that_holds_its_blocks():
    placement = PlacementMap(2)

    assert placement.apply(make_heartbeat(0, 1, ("a", 0, 3), ("b", 0, 1), is_full=True))
    assert placement.apply(make_heartbeat(1, 1, ("a", 0, 2), is_full=True))

    assert placement.requests() == {"a": {0: 3, 1: 2}, "b": {0: 1}}
    assert placement.entries(1) == {("a", 0): 2}


def test_homes_of_one_request_add_up():
    placement = PlacementMap(1)
    placement.apply(make_heartbeat(0, 1, ("a", 0, 3), ("a", 1, 2), is_full=True))
    assert placement.requests() == {"a": {0: 5}}

    placement.apply(make_heartbeat(0, 2, ("a", 0, 0)))
    assert placement.requests() == {"a": {0: 2}}


def test_change_replaces_the_entry_and_zero_removes_it():
    placement = PlacementMap(1)
    placement.apply(make_heartbeat(0, 1, ("a", 0, 3), ("b", 0, 1), is_full=True))

    placement.apply(make_heartbeat(0, 2, ("a", 0, 4), ("b", 0, 0)))

    assert placement.requests() == {"a": {0: 4}}
    assert placement.entries(0) == {("a", 0): 4}


def test_changes_before_anything_was_heard_in_full_are_ignored():
    placement = PlacementMap(1)

    assert not placement.apply(make_heartbeat(0, 0, ("a", 0, 3)))
    assert not placement.apply(make_heartbeat(0, 1, ("a", 0, 3)))
    assert placement.heard(0) == PlacementMap.NEVER
    assert placement.requests() == {}


def test_changes_after_a_gap_are_ignored_until_heard_in_full():
    placement = PlacementMap(1)
    placement.apply(make_heartbeat(0, 1, ("a", 0, 3), is_full=True))

    assert not placement.apply(make_heartbeat(0, 3, ("b", 0, 1)))
    assert placement.heard(0) == 1
    assert placement.apply(make_heartbeat(0, 4, ("b", 0, 2), is_full=True))

    assert placement.heard(0) == 4
    assert placement.requests() == {"b": {0: 2}}


def test_duplicates_and_old_heartbeats_change_nothing():
    placement = PlacementMap(1)
    placement.apply(make_heartbeat(0, 1, ("a", 0, 3), is_full=True))
    placement.apply(make_heartbeat(0, 2, ("a", 0, 4)))

    assert not placement.apply(make_heartbeat(0, 2, ("a", 0, 9)))
    assert not placement.apply(make_heartbeat(0, 2, ("a", 0, 9), is_full=True))
    assert not placement.apply(make_heartbeat(0, 1, ("a", 0, 3), is_full=True))
    assert placement.requests() == {"a": {0: 4}}


def test_list_of_requests_is_the_callers_own():
    placement = PlacementMap(1)
    placement.apply(make_heartbeat(0, 1, ("a", 0, 3), is_full=True))

    placement.requests()["a"][0] = 9

    assert placement.requests() == {"a": {0: 3}}
