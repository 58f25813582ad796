"""A process enters one JAX world after another, past those that die and without the old devices.

Each in a process of its own: JAX is in one world at a time.
"""

import subprocess
import sys

import pytest

from tests.world.running import ROOT, free_port_pair

BEGIN = """
import sys, threading, weakref
import jax
from distkv_jax.world.processes import Presence
import distkv_jax.world.processes as processes
from distkv_jax.world.stand_in import stand_in
PORTS = [int(port) for port in sys.argv[1:]]
def enter(port, num_processes=1):
    return Presence(
        f"127.0.0.1:{port}", num_processes=num_processes, process_id=0, platform="cpu", timeout_s=60
    )
"""


def run(script: str) -> str:
    ports = [f"{free_port_pair()}" for _ in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, *ports],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_one_world_follows_another() -> None:
    told = run("""
for port in PORTS:
    presence = enter(port)
    client = weakref.ref(jax.devices()[0].client)
    print(int(jax.jit(lambda x: x + 1)(1)))
    presence.drop_devices()
    assert client() is None
    presence.leave()
""")
    assert told.split() == ["2", "2"]


@pytest.mark.parametrize(
    "what", ["jax.numpy.ones(3)", "jax.devices()", "jax.jit(lambda x: x).lower(1).compile()"]
)
def test_what_still_refers_to_the_devices_is_told(what: str) -> None:
    told = run(f"""
processes.RELEASE_S = 0.2
presence = enter(PORTS[0])
held = {what}
try:
    presence.drop_devices()
except processes.WorldLost as error:
    print(error)
""")
    assert told.strip() == "something still refers to the devices of an epoch that is over"


def test_a_stand_in_comes_for_one_that_died_on_its_way() -> None:
    told = run("""
threading.Timer(0.5, stand_in, (f"127.0.0.1:{PORTS[0]}", 2, 1)).start()
presence = enter(PORTS[0], num_processes=2)
print(jax.process_count())
presence.drop_devices()
presence.leave()
# And on, alone.
enter(PORTS[1])
print(jax.process_count())
""")
    assert told.split() == ["2", "1"]
