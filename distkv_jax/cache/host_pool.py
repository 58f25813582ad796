"""Accounting for one instance's host memory, at the host that has it; its arrays are elsewhere."""

from distkv_jax.cache.charges import Account, Holder
from distkv_jax.cache.messages import Heartbeat, NotSaved, Saved
from distkv_jax.cache.rmanager import RManager
from distkv_jax.errors import InvariantError, OutOfBlocks


class HostPool:
    """An rManager over blocks of host memory: whole saves hold them, first come first served.

    The leader knows it by what it answers and by its heartbeats. What it said to be saved stays
    until it is told to forget it.

    Invariant: exactly the saves listed here hold blocks.

    Attributes:
        rmanager: Counts the blocks.
    """

    def __init__(self, instance: int, num_blocks: int) -> None:
        self.rmanager = RManager(instance, num_blocks, lend_cap=num_blocks)
        self._saves: dict[int, tuple[Holder, tuple[int, ...]]] = {}

    @property
    def saves(self) -> frozenset[int]:
        """The saves that hold blocks."""
        return frozenset(self._saves)

    def save(self, save_id: int, request_id: str, home: int, count: int) -> Saved | NotSaved:
        """Hold `count` free blocks for a save, all or none; asked twice it does so once.

        Args:
            save_id: Names the save for ever.
            request_id: Whose blocks.
            home: Instance that they are charged to.
            count: At least 1.
        """
        instance = self.rmanager.instance
        if save_id not in self._saves:
            holder = Holder(save_id, Account(request_id, home))
            try:
                blocks = self.rmanager.allocate(holder, count)
            except OutOfBlocks as refused:
                return NotSaved(instance=instance, save_id=save_id, num_free=refused.free)
            self._saves[save_id] = holder, blocks
        return Saved(instance=instance, save_id=save_id)

    def blocks(self, save_id: int) -> tuple[int, ...]:
        """List the blocks of a save in their order; none where it was refused or forgotten."""
        return self._saves[save_id][1] if save_id in self._saves else ()

    def forget(self, save_id: int) -> None:
        """Free the blocks of a save, which may be none."""
        if save_id in self._saves:
            self.rmanager.release(*self._saves.pop(save_id))

    def forget_all(self) -> None:
        """Free all blocks."""
        for save_id in self.saves:
            self.forget(save_id)

    def heartbeat(self) -> Heartbeat:
        """Say everything: a lost heartbeat is made good by the next."""
        return self.rmanager.heartbeat(is_full=True)

    def check(self) -> None:
        """Verify the class invariant.

        Raises:
            InvariantError: It is broken.
        """
        self.rmanager.check()
        holders = {holder for holder, _ in self._saves.values()}
        if holders != set(self.rmanager.holders):
            raise InvariantError(
                f"host memory of instance {self.rmanager.instance}: saves {sorted(self._saves)}, "
                f"blocks held by {[holder.sequence for holder in self.rmanager.holders]}"
            )
