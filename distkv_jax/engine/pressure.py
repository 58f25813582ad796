"""Which instances need memory that they lent: noted in one step, met before the next."""

from distkv_jax.cache.coordinator import Coordinator


class Pressure:
    """What the scheduler asks of the moves between steps.

    Attributes:
        wanted: Blocks to be recalled for an instance, which meanwhile borrows elsewhere.
        urgent: Instances with a sequence that waits for a recall: nobody else could help it.
    """

    def __init__(self, coordinator: Coordinator, *, patience: int) -> None:
        """Note nothing yet.

        Args:
            coordinator: Knows who lent what.
            patience: Steps for which an instance is not asked again after a recall brought nothing.
        """
        self.wanted: dict[int, int] = {}
        self.urgent: set[int] = set()
        self._coordinator = coordinator
        self._patience = patience
        self._in_vain: dict[int, int] = {}
        self._step = 0

    def note(self, instance: int) -> None:
        """Say that an instance borrows a block while others hold its own."""
        if self._can_help(instance):
            self.wanted[instance] = self.wanted.get(instance, 0) + 1

    def wait(self, instance: int) -> bool:
        """Whether a sequence without a block should wait for a recall, and preempt nobody."""
        if not self._can_help(instance):
            return False
        self.note(instance)
        self.urgent.add(instance)
        return True

    def relieved(self, instance: int, num_blocks: int) -> None:
        """Say what a recall brought that no budget held back."""
        if not num_blocks:
            # This step is not over: the patience begins with the next one.
            self._in_vain[instance] = self._step + 1 + self._patience

    def _can_help(self, instance: int) -> bool:
        """Whether a recall could free something: a loan, and a block for it to go to."""
        is_hopeless = self._step < self._in_vain.get(instance, 0)
        has_lent = bool(self._coordinator.rmanagers[instance].lent)
        return has_lent and not is_hopeless and self._coordinator.num_free > 0

    def next_step(self) -> None:
        """Forget what was asked for in the step before."""
        self._step += 1
        self.wanted.clear()
        self.urgent.clear()
