"""A debtor's side of moves: which block goes where, reserved first, all told once it is done."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from distkv_jax.cache.block import Place
from distkv_jax.cache.charges import Account, SequenceKey
from distkv_jax.cache.messages import (
    Arrival,
    BlockEpoch,
    Commit,
    Committed,
    Granted,
    Release,
    ReservationId,
    TryMoveKVCache,
)
from distkv_jax.cache.rmanager import RManager
from distkv_jax.cache.transport import Transport

Movable: TypeAlias = Callable[[SequenceKey], Sequence[Place]]
"""Lists the blocks of a sequence that nothing writes to any more, oldest first."""


class Transfer(NamedTuple):
    """Copy a block; then the tables of its sequences name the destination.

    Attributes:
        source: Where it is.
        destination: Where it goes: a block reserved for it, or the source of another transfer
            that is committed with it.
        sequences: All that hold it, the one that is charged first.
        source_epoch: Epoch of the source when this was planned.
        destination_epoch: Epoch of the destination then.
        reservation: Through which the destination is kept; none where another transfer leaves it.
    """

    source: Place
    destination: Place
    sequences: tuple[SequenceKey, ...]
    source_epoch: int
    destination_epoch: int
    reservation: ReservationId | None


class Kept(NamedTuple):
    """A reservation that was granted.

    Attributes:
        name: The reservation.
        instance: Where.
        blocks: The blocks kept, in their epochs.
    """

    name: ReservationId
    instance: int
    blocks: tuple[BlockEpoch, ...]


class Mover:
    """Plans transfers, and commits or drops them later.

    Until the commit no sequence holds anything else than before. What changed hands in between
    is dropped then, and with it every transfer into a block that does not become vacant.

    Attributes:
        movable: Which blocks may move; none until somebody says so.
        transport: How instances are asked.
        step: Now.
    """

    def __init__(self, rmanagers: Sequence[RManager], transport: Transport, *, lease: int) -> None:
        """Plan nothing yet.

        Args:
            rmanagers: One for each instance.
            transport: How instances are asked.
            lease: Steps for which a reservation holds beyond the one it is made in.
        """
        self.movable: Movable = lambda sequence: ()
        self.transport = transport
        self.step = 0
        self._rmanagers = rmanagers
        self._lease = lease
        self._num_reservations = 0
        self._sources: dict[Place, int] = {}
        self._kept: dict[ReservationId, Release] = {}
        self._unanswered: dict[ReservationId, tuple[int, Release]] = {}

    def tick(self, step: int) -> None:
        """Go on to `step`: plans whose lease ended are void, and lost releases are sent again."""
        self.step = max(self.step, step)
        self._sources = {
            place: until for place, until in self._sources.items() if until >= self.step
        }
        self._kept = {
            name: release for name, release in self._kept.items() if release.until >= self.step
        }
        for instance, release in tuple(self._unanswered.values()):
            self._send_release(instance, release)

    def candidates(
        self, instance: int, home: int, request_id: str | None = None
    ) -> Iterator[Place]:
        """List what could leave an instance, each sequence's oldest blocks first.

        Args:
            instance: Where the blocks are.
            home: Whom they are charged to.
            request_id: Of this request only; of any by default.
        """
        rmanager = self._rmanagers[instance]
        for holder in tuple(rmanager.holders):
            account = holder.account
            if account.home != home or request_id not in (None, account.request_id):
                continue
            for place in self.movable(holder.sequence):
                if place.instance != instance or place in self._sources:
                    continue
                if rmanager.charged(place.index) == holder:
                    yield place

    def homes(self, instance: int, request_id: str) -> tuple[int, ...]:
        """List whom the blocks of a request on an instance are charged to."""
        accounts = self._rmanagers[instance].accounts()
        return tuple(account.home for account in accounts if account.request_id == request_id)

    def reserve(self, destination: int, account: Account, count: int) -> Kept | None:
        """Ask an instance to keep blocks; None where it refused or did not answer."""
        self._num_reservations += 1
        name = ReservationId(account.home, self._num_reservations)
        until = self.step + self._lease
        request = TryMoveKVCache(
            reservation=name,
            request_id=account.request_id,
            home=account.home,
            num_blocks=count,
            until=until,
        )
        release = Release(reservation=name, until=until)
        match self.transport.ask(destination, request):
            case Granted(blocks=blocks):
                self._kept[name] = release
                return Kept(name, destination, blocks)
            case None:
                self._send_release(destination, release)
        return None

    def transfer(
        self, places: Sequence[Place], kept: Kept | None, index: int = 0
    ) -> list[Transfer]:
        """Plan that each block takes the next one's place, the last one a kept one or the first's.

        Args:
            places: Blocks of different instances.
            kept: Where the last one goes; without it they go round in a circle.
            index: Which of the kept blocks.
        """
        transfers: list[Transfer] = []
        for place, following in zip(places, [*places[1:], None], strict=True):
            target = places[0] if following is None else following
            epoch = self._epoch(target)
            name = None
            if following is None and kept is not None:
                block, epoch = kept.blocks[index]
                target, name = Place(kept.instance, block), kept.name
            line = self._rmanagers[place.instance].line(place.index)
            sequences = tuple(holder.sequence for holder in line)
            transfers.append(Transfer(place, target, sequences, self._epoch(place), epoch, name))
            self._sources[place] = self.step + self._lease
        return transfers

    def commit(self, transfers: Sequence[Transfer]) -> tuple[Transfer, ...]:
        """Make transfers true, but for those whose blocks changed hands since they were planned.

        Returns:
            Those that are true now. Exactly these must be copied, and their sequences' tables
            changed, before anything else is sent to the devices.
        """
        valid = [transfer for transfer in transfers if self._is_unchanged(transfer)]
        by_reservation: dict[ReservationId, list[Transfer]] = {}
        for transfer in valid:
            if transfer.reservation is not None:
                by_reservation.setdefault(transfer.reservation, []).append(transfer)
        lost = {
            name for name, arriving in by_reservation.items() if not self._commit(name, arriving)
        }
        done = _without_stuck([transfer for transfer in valid if transfer.reservation not in lost])
        self._switch(done)
        self.abort(transfers)
        return tuple(done)

    def abort(self, transfers: Sequence[Transfer]) -> None:
        """Forget planned transfers, and let go what is still kept for them."""
        for transfer in transfers:
            self._sources.pop(transfer.source, None)
            name = transfer.reservation
            if name is not None and name in self._kept:
                self._send_release(transfer.destination.instance, self._kept.pop(name))

    def _commit(self, name: ReservationId, arriving: Sequence[Transfer]) -> bool:
        """Let the destination take its arrivals; False where it refused or did not answer."""
        release = self._kept.pop(name, None)
        if release is None:
            return False
        instance = arriving[0].destination.instance
        arrivals = tuple(
            Arrival(
                transfer.destination.index,
                self._rmanagers[transfer.source.instance].line(transfer.source.index),
            )
            for transfer in arriving
        )
        match self.transport.ask(instance, Commit(reservation=name, arrivals=arrivals)):
            case Committed():
                return True
            case None:
                blocks = tuple(arrival.block for arrival in arrivals)
                undo = Release(reservation=name, until=release.until, blocks=blocks)
                self._send_release(instance, undo)
        return False

    def _switch(self, transfers: Sequence[Transfer]) -> None:
        """Vacate all sources, and fill those that are destinations too."""
        sources: dict[int, list[int]] = {}
        for transfer in transfers:
            sources.setdefault(transfer.source.instance, []).append(transfer.source.index)
        lines = {
            Place(instance, block): line
            for instance, blocks in sources.items()
            for block, line in self._rmanagers[instance].lift(blocks).items()
        }
        arrivals: dict[int, dict[int, tuple]] = {}
        for transfer in transfers:
            if transfer.reservation is None:
                instance, block = transfer.destination
                arrivals.setdefault(instance, {})[block] = lines[transfer.source]
        for instance, blocks in sources.items():
            arriving = arrivals.get(instance, {})
            self._rmanagers[instance].adopt(arriving)
            self._rmanagers[instance].drop([block for block in blocks if block not in arriving])

    def _send_release(self, instance: int, release: Release) -> None:
        reply = self.transport.ask(instance, release)
        if reply is None:
            self._unanswered[release.reservation] = instance, release
        else:
            self._unanswered.pop(release.reservation, None)

    def _epoch(self, place: Place) -> int:
        return self._rmanagers[place.instance].epoch(place.index)

    def _is_unchanged(self, transfer: Transfer) -> bool:
        """Whether the same sequences hold the source, and the destination is what it was."""
        source, destination = transfer.source, transfer.destination
        line = self._rmanagers[source.instance].line(source.index)
        return (
            source in self._sources
            and self._epoch(source) == transfer.source_epoch
            and tuple(holder.sequence for holder in line) == transfer.sequences
            and (
                transfer.reservation is not None
                or self._epoch(destination) == transfer.destination_epoch
            )
        )


def by_sequence(transfers: Sequence[Transfer]) -> Mapping[SequenceKey, Mapping[Place, Place]]:
    """List for each sequence which places of its table become which, all of them at once.

    Destinations may be other transfers' sources, so a table must be mapped in one pass.
    """
    changes: dict[SequenceKey, dict[Place, Place]] = {}
    for transfer in transfers:
        for sequence in transfer.sequences:
            changes.setdefault(sequence, {})[transfer.source] = transfer.destination
    return changes


def _without_stuck(transfers: Sequence[Transfer]) -> list[Transfer]:
    """Leave out transfers into blocks that do not become vacant, and so on from those."""
    left = {transfer.source: transfer for transfer in transfers}
    into = {transfer.destination: transfer for transfer in transfers}
    stuck = [
        transfer
        for transfer in transfers
        if transfer.reservation is None and transfer.destination not in left
    ]
    while stuck:
        transfer = stuck.pop()
        del left[transfer.source]
        behind = into.get(transfer.source)
        if behind is not None and behind.source in left and behind.reservation is None:
            stuck.append(behind)
    return list(left.values())
