"""Hosts that are network namespaces of this machine, on a bridge; their links can be cut.

Needs root, iproute2 and iptables. A host has an interface `eth0` and an /etc/hosts of its own, in
which this machine's name is the host's address: gloo listens where the machine's name leads.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

HOSTS_FILES = Path("/etc/netns")
"""Where `ip netns exec` looks for files that it puts over those of /etc."""
DEVICE = "eth0"


def reason_against() -> str | None:
    """Say why there can be no such hosts here; None if there can."""
    if os.geteuid() != 0:
        return "it needs root"
    for command in ("ip", "iptables"):
        if shutil.which(command) is None:
            return f"there is no {command} (apt-get install iproute2 iptables)"
    name = f"dk{os.getpid()}try"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "exec", name, "iptables", "-w", "-t", "nat", "-S")
        run("ip", "-n", name, "link", "add", "one", "type", "bridge")
        run("ip", "-n", name, "link", "add", "two", "type", "veth")
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip() or error.returncode}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


class Hosts:
    """Some hosts and the bridge that joins them; this process is at `gateway`.

    Attributes:
        prefix: Of the namespaces' names, other ones in every run.
        gateway: Address of this process on the bridge.
        address: Of each host.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Make nothing yet."""
        self.prefix = f"dk{os.getpid()}"
        # Two runs have different process ids, and so different networks.
        net = f"10.{128 + os.getpid() // 256 % 100}.{os.getpid() % 256}"
        self.gateway = f"{net}.254"
        self.address = {name: f"{net}.{1 + at}" for at, name in enumerate(names)}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Hosts":
        with contextlib.ExitStack() as undo:
            self._make(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def namespace(self, host: str) -> str:
        """Name the namespace of a host."""
        return f"{self.prefix}{host}"

    def cut(self, host: str) -> None:
        """Take a host's link down; no connection is closed by that."""
        run("ip", "-n", self.namespace(host), "link", "set", DEVICE, "down")

    def mend(self, host: str) -> None:
        """Take it up again."""
        run("ip", "-n", self.namespace(host), "link", "set", DEVICE, "up")

    def lose(self, host: str, port: int, share: float) -> None:
        """Drop that share of a host's packets to and from a port elsewhere; 0 ends that."""
        self.iptables(host, "-F", "INPUT")
        self.iptables(host, "-F", "OUTPUT")
        chance = ("-m", "statistic", "--mode", "random", "--probability", f"{share}", "-j", "DROP")
        if share:
            self.iptables(host, "-A", "INPUT", "-p", "tcp", "--sport", f"{port}", *chance)
            self.iptables(host, "-A", "OUTPUT", "-p", "tcp", "--dport", f"{port}", *chance)

    def detour(self, host: str, port: int) -> None:
        """Lead new connections of a host to a port elsewhere to the same port of the gateway."""
        way = ("-p", "tcp", "--syn", "--dport", f"{port}", "-j", "DNAT")
        self.iptables(host, "-t", "nat", "-A", "OUTPUT", *way, "--to-destination", self.gateway)

    def iptables(self, host: str, *words: str) -> None:
        """Change a host's packet filter."""
        run("ip", "netns", "exec", self.namespace(host), "iptables", "-w", *words)

    def processes(self, host: str) -> list[int]:
        """List the processes that run on a host."""
        done = run("ip", "netns", "pids", self.namespace(host))
        return [int(word) for word in done.split()]

    def _make(self, undo: contextlib.ExitStack) -> None:
        bridge = f"{self.prefix}br"
        run("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(run, "ip", "link", "del", bridge)
        run("ip", "address", "add", f"{self.gateway}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for at, (host, address) in enumerate(self.address.items()):
            name, port = self.namespace(host), f"{self.prefix}p{at}"
            run("ip", "netns", "add", name)
            # Its interface goes with it.
            undo.callback(run, "ip", "netns", "del", name)
            undo.callback(self._kill, host)
            run("ip", "link", "add", port, "type", "veth", "peer", "name", DEVICE, "netns", name)
            run("ip", "link", "set", port, "master", bridge, "up")
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                run("ip", "-n", name, "link", "set", device, "up")
            undo.callback(self._forget_names, name)
            (HOSTS_FILES / name).mkdir(parents=True)
            names = f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
            (HOSTS_FILES / name / "hosts").write_text(names)

    def _forget_names(self, namespace: str) -> None:
        shutil.rmtree(HOSTS_FILES / namespace, ignore_errors=True)
        with contextlib.suppress(OSError):
            # Only if it is empty.
            HOSTS_FILES.rmdir()

    def _kill(self, host: str) -> None:
        for pid in self.processes(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(*words: str) -> str:
    """Run a command that must succeed; gives its output."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
