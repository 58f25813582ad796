"""`distkv serve` as one of several processes: rank 0 serves, the others follow it."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator

import distkv_jax
from distkv_jax.cli.arguments import given_fields
from distkv_jax.cli.main import BAD_INPUT, complaint
from distkv_jax.engine.config import EngineConfig
from distkv_jax.errors import ConfigError, DistKVError, WorldLost
from distkv_jax.llm import LLM, engine_config
from distkv_jax.mesh import MeshConfig, for_hosts, load_mesh_config, simulate
from distkv_jax.models.model_folder import read_config
from distkv_jax.world.fingerprint import Fingerprint, fingerprint_of
from serve.launch.detect import detect
from serve.launch.names import wait_for_name
from serve.launch.told import READY, UP, tell, tell_fenced
from serve.world.exit import LOST, end_process, leave_at_once
from serve.world.follow import follow
from serve.world.leader import Leader
from serve.world.settings import WorldSettings
from serve.world.token import read_token


def world_settings(args: argparse.Namespace) -> WorldSettings:
    """Read which of how many processes this is, from the command line and from a launcher.

    Raises:
        ConfigError: It cannot be, or the launcher did not say.
    """
    given = given_fields(args, WorldSettings)
    launcher = given.get("launcher")
    return WorldSettings(**(({} if launcher is None else detect(launcher)) | given))


class Place:
    """What the command line says of this process and of what all of them run."""

    def __init__(self, args: argparse.Namespace, settings: WorldSettings) -> None:
        """Read it; nothing is loaded.

        Raises:
            ConfigError: The model, the mesh or a setting cannot be.
            OSError: A file cannot be read.
        """
        assert settings.join_token_file is not None
        if "mesh" not in args or args.mesh == "auto":
            raise ConfigError("a service of several hosts needs a mesh by its name or file")
        self.settings = settings
        self.model: str = args.model if "model" in args else "tiny"
        self.dtype: str = args.dtype if "dtype" in args else "auto"
        self.mesh: MeshConfig = for_hosts(load_mesh_config(args.mesh), settings.num_hosts)
        self.engine_args = given_fields(args, EngineConfig)
        self.config = engine_config(self.engine_args, self.mesh)
        self.token = read_token(settings.join_token_file)
        # Entering the world of all processes makes the devices.
        simulate(self.mesh)

    @property
    def fingerprint(self) -> Fingerprint:
        """What all processes must have in common."""
        return fingerprint_of(
            distkv_jax.__version__, self.model, self.mesh, self.dtype, self.config
        )


def follow_leader(place: Place) -> int:
    """Follow rank 0 until it stops."""
    # The leader ends those that follow; a signal to all of a service's processes must not end
    # them before it has drained. A second one means it.
    signal.signal(signal.SIGINT, on_first_signal)
    signal.signal(signal.SIGTERM, on_first_signal)
    with ends_hard():
        follow(
            place.settings,
            place.fingerprint,
            place.token,
            model=place.model,
            mesh=place.mesh,
            dtype=place.dtype,
            config=place.config,
        )
    print(f"rank {place.settings.rank} stopped with its leader", file=sys.stderr)
    return 0


def on_first_signal(number: int, _: object) -> None:
    """Wait for the leader; the next signal is obeyed."""
    print("waiting for the leader to stop, a second signal stops at once", file=sys.stderr)
    signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def lead(place: Place, *, show_progress: bool) -> Iterator[LLM]:
    """Gather the others and load the model with them; at the end they are told to stop."""
    settings = place.settings
    leader = Leader(
        settings,
        place.fingerprint,
        place.token,
        num_slots=place.config.max_num_seqs,
        vocab_size=read_config(place.model).vocab_size,
        platform=place.mesh.platform,
        on_lost=end_process,
    )
    with ends_hard(), leader:
        if settings.launcher in ("lws", "job"):
            wait_for_name(settings.host, settings.join_timeout_s)
        leader.gather()
        leader.enter()
        with LLM(
            place.model,
            mesh=place.mesh,
            dtype=place.dtype,
            show_progress=show_progress,
            world=leader,
            **place.engine_args,
        ) as llm:
            # Its thread may wait for devices that never answer: requests end without it.
            leader.on_lost = llm.thread.abandon
            leader.on_fenced = tell_fenced
            tell(UP)
            if llm.can_renew:
                leader.on_due = llm.thread.wake
                tell(READY)
            yield llm
            leader.on_due = None
            leader.on_lost = end_process
    leader.leave()


@contextlib.contextmanager
def ends_hard() -> Iterator[None]:
    """Tell an error as every command does, and leave at once."""
    try:
        yield
    except WorldLost as error:
        end_process(error)
    except (ConfigError, OSError) as error:
        # An orderly end would wait for the other processes, which do not know yet.
        leave_at_once(complaint(error, "serve"), BAD_INPUT)
    except DistKVError as error:
        # Not what was asked for is wrong, it is worth another try.
        leave_at_once(complaint(error, "serve"), LOST)
