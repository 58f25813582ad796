"""Ending this process's connections to a host that is gone without closing them.

A host that loses power or its link says nothing: whoever waits for it inside a collective waits for
ever, and no time-out of gloo or of the kernel's comes to help. So its connections are ended here.
"""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path


def own_addresses(host: str, port: int) -> set[str]:
    """List the addresses by which others know this host, but for loopback.

    Args:
        host: Another one, as they all reach it.
        port: Of anything there; nothing is sent.
    """
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for *_, place in socket.getaddrinfo(socket.gethostname(), None):
            found.add(str(place[0]))
    with contextlib.suppress(OSError):
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as one:
            one.connect(place)
            found.add(str(one.getsockname()[0]))
    return {plain(one) for one in found if not ipaddress.ip_address(plain(one)).is_loopback}


def plain(address: str) -> str:
    """Write an address in one way, an IPv4 one that an IPv6 socket names too."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def cut(addresses: Iterable[str]) -> int:
    """End all connections of this process to some addresses; gives how many there were.

    Whoever reads from one finds it closed by its other end. Only on Linux; elsewhere nothing is
    done, and a collective that waits for a host without power waits on.
    """
    wanted = set(addresses)
    files = Path("/proc/self/fd")
    if not wanted or not files.is_dir():
        return 0
    return sum(is_cut(int(name), wanted) for name in os.listdir(files))


def is_cut(number: int, addresses: set[str]) -> bool:
    """End the connection of a file descriptor, if it is one to such an address."""
    try:
        # A copy: its end closes no connection, but `shutdown` is of the connection.
        with socket.socket(fileno=os.dup(number)) as one:
            if one.type != socket.SOCK_STREAM or one.family == socket.AF_UNIX:
                return False
            if plain(one.getpeername()[0]) not in addresses:
                return False
            one.shutdown(socket.SHUT_RDWR)
    except OSError:
        # No socket, no connection, or gone meanwhile.
        return False
    return True
