"""What a runner is told to do, so that runners of other processes can be told the same."""

from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from distkv_jax.cache.messages import FromHost
from distkv_jax.engine.moves import Round
from distkv_jax.engine.sampler_state import SlotRow
from distkv_jax.engine.shapes import PlanShape


class Step(NamedTuple):
    """Run a step.

    Attributes:
        number: Of the command; a runner counts from 1.
        shape: Which program.
        buffer: The step plan of all instances; nobody writes to it any more.
    """

    number: int
    shape: PlanShape
    buffer: np.ndarray


class Move(NamedTuple):
    """Copy blocks between instances, round by round."""

    number: int
    rounds: tuple[Round, ...]


class FillSlot(NamedTuple):
    """Fill a slot of the sampler's state."""

    number: int
    slot: int
    row: SlotRow


class Save(NamedTuple):
    """Copy blocks to the host memory of their instances; one that has no room keeps none of its.

    Attributes:
        number: Of the command.
        save_id: Names the save for ever.
        request_id: Whose blocks.
        home: Instance that they are charged to.
        blocks: For each instance, its blocks, in the order of their tokens.
    """

    number: int
    save_id: int
    request_id: str
    home: int
    blocks: tuple[tuple[int, ...], ...]


class Fetch(NamedTuple):
    """Copy saved blocks back, and forget the save. Every host that is named has said to have it.

    Attributes:
        number: Of the command.
        save_id: Which save.
        blocks: For each instance, where each of its saved blocks goes, the first ones of the save
            first; `NOT_WANTED` for one that goes nowhere.
    """

    number: int
    save_id: int
    blocks: tuple[tuple[int, ...], ...]


class Forget(NamedTuple):
    """Free what host memory a save holds, which may be none."""

    number: int
    save_id: int


class Reset(NamedTuple):
    """Let pools, sampler state and everything in host memory go: a step has failed."""

    number: int


NOT_WANTED = -1
"""In `Fetch.blocks`."""

HostCommand: TypeAlias = Save | Fetch | Forget
"""What concerns host memory."""

Command: TypeAlias = Step | Move | FillSlot | HostCommand | Reset


@runtime_checkable
class World(Protocol):
    """The processes that share a mesh, as the one that leads them sees them.

    Its runner tells every command before it runs it, so that all run the same in the same order.
    Nothing else may use the mesh's devices.
    """

    @property
    def is_due(self) -> bool:
        """Whether it must be formed anew: a process is lost, or one has come."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether it is due because no command can be carried out any more."""
        ...

    @property
    def patience_s(self) -> float:
        """Seconds for which it is worth waiting for a process that is lost to come back."""
        ...

    def reform(self) -> int:
        """Form it anew, of the processes that are left and of those that have come.

        Whoever calls it has let go of all arrays and programs.

        Returns:
            How many processes there are now.

        Raises:
            WorldLost: It is over for good.
        """
        ...

    def begin(self, num_blocks: int, implementation: str) -> None:
        """Have the others make their runners.

        Args:
            num_blocks: Of each instance's pool.
            implementation: Of MicroAttention.
        """
        ...

    def wait_ready(self) -> None:
        """Wait until the others have compiled what steps need.

        Raises:
            WorldLost: One of them is gone.
        """
        ...

    def publish(self, command: Command) -> None:
        """Send a command to the others; a `Reset` is also waited for.

        Raises:
            WorldLost: One of them is gone: no command can be carried out any more.
        """
        ...

    def dispatched(self, number: int) -> None:
        """Hear that this process has started a command."""
        ...

    def read(self, number: int, ids: np.ndarray) -> None:
        """Hear what a step sampled, to compare it with what the others read."""
        ...

    def hear(self) -> list[FromHost]:
        """Take what the other processes have said about their host memory since the last call."""
        ...
