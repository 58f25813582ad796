"""The audit compares every total and entry, but only where gManager heard everything."""

import pytest

from distkv_jax.cache.audit import check_view, is_heard
from distkv_jax.cache.charges import Account, Holder
from distkv_jax.cache.gmanager import GManager
from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import InvariantError

REMOTE = Holder("remote", Account("r", 1))


def make_view() -> tuple[GManager, RManager]:
    """An instance that lends 2 blocks, and a gManager that heard so."""
    gmanager, rmanager = GManager(2), RManager(0, 4, 4)
    rmanager.allocate(REMOTE, 2)
    gmanager.receive(rmanager.heartbeat(is_full=True))
    return gmanager, rmanager


def test_view_of_what_was_heard_is_right():
    gmanager, rmanager = make_view()

    assert is_heard(gmanager, rmanager)
    check_view(gmanager, rmanager)


def test_view_is_not_judged_while_news_are_on_the_way():
    gmanager, rmanager = make_view()

    rmanager.release_all(REMOTE)
    check_view(gmanager, rmanager)
    rmanager.heartbeat()
    assert not is_heard(gmanager, rmanager)
    check_view(gmanager, rmanager)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_blocks": 5},
            r"\(5, 2, 0, 2, {1: 2}\) of instance 0, expected \(4, 2, 0, 2, {1: 2}\)",
        ),
        ({"num_free": 1}, r"\(4, 1, 0, 2, {1: 2}\) of instance 0, expected \(4, 2, 0, 2, {1: 2}\)"),
        (
            {"num_lendable": 1},
            r"\(4, 2, 0, 1, {1: 2}\) of instance 0, expected \(4, 2, 0, 2, {1: 2}\)",
        ),
        (
            {"num_reserved": 1},
            r"\(4, 2, 1, 2, {1: 2}\) of instance 0, expected \(4, 2, 0, 2, {1: 2}\)",
        ),
        (
            {"lent": {1: 1}},
            r"\(4, 2, 0, 2, {1: 1}\) of instance 0, expected \(4, 2, 0, 2, {1: 2}\)",
        ),
    ],
)
def test_wrong_ledger_is_found(change: dict, message: str):
    gmanager, rmanager = make_view()
    ledger = gmanager.ledger
    ledger._rows[0] = ledger.row(0)._replace(**change)

    with pytest.raises(
        InvariantError, match=rf"^ledger says \(total, free, reserved, lendable, lent\) {message}$"
    ):
        check_view(gmanager, rmanager)


def test_wrong_placement_map_is_found():
    gmanager, rmanager = make_view()
    gmanager.placement._entries[0]["other", 0] = 1

    with pytest.raises(
        InvariantError,
        match="^placement map has 3 blocks of instance 0 for 2 accounts, expected 2 for 1$",
    ):
        check_view(gmanager, rmanager)
