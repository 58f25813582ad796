"""The connections to a host that is gone are ended here, and no others."""

import socket
import threading
from collections.abc import Iterator

import pytest

from distkv_jax.world.connections import cut, own_addresses, plain


class Pair:
    """A connection from here to a loopback address, as if that were another host."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as listening:
            listening.bind((address, 0))
            listening.listen()
            self.here = socket.create_connection(listening.getsockname()[:2], timeout=10)
            self.there, _ = listening.accept()

    @property
    def is_alive(self) -> bool:
        self.there.sendall(b"x")
        try:
            return self.here.recv(1) == b"x"
        except OSError:
            return False

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def pairs() -> Iterator[dict[str, Pair]]:
    made = {address: Pair(address) for address in ("127.0.0.2", "127.0.0.3")}
    yield made
    for pair in made.values():
        pair.close()


def test_connections_to_a_lost_host_are_ended_and_no_others(pairs: dict[str, Pair]) -> None:
    assert cut({"127.0.0.3"}) >= 1
    assert pairs["127.0.0.3"].here.recv(1) == b""
    assert pairs["127.0.0.2"].is_alive


def test_nothing_is_ended_for_no_host(pairs: dict[str, Pair]) -> None:
    assert cut(set()) == 0
    assert all(pair.is_alive for pair in pairs.values())


def test_who_waits_for_a_lost_host_waits_no_more(pairs: dict[str, Pair]) -> None:
    read: list[bytes] = []
    reading = threading.Thread(target=lambda: read.append(pairs["127.0.0.2"].here.recv(1)))
    reading.start()
    cut({"127.0.0.2"})
    reading.join(10)

    assert read == [b""]


def test_addresses_are_written_in_one_way() -> None:
    assert plain("::ffff:10.0.0.7") == "10.0.0.7"
    assert plain("fe80::1%eth0") == "fe80::1"
    assert plain("10.0.0.7") == "10.0.0.7"


def test_loopback_is_nobodys_address() -> None:
    found = own_addresses("127.0.0.1", 50061)

    assert not any(address.startswith("127.") or address == "::1" for address in found)
