"""A placement to try things on: blocks of requests on instances, and what a step would take."""

import heapq
import math
from collections.abc import Iterator
from typing import NamedTuple

from distkv_jax.cache.performance import StepModel
from distkv_jax.cache.view import View


class Move(NamedTuple):
    """Blocks of one request that go from one instance to another.

    Attributes:
        request: Index of the request in the view.
        source: Where they are.
        destination: Where they go.
        num_blocks: At least 1.
    """

    request: int
    source: int
    destination: int
    num_blocks: int


class Draft:
    """Follows moves without making any, and takes them back.

    An instance's seconds are an exact sum, so they depend on the placement only and not on the
    way to it: a plan made from the placement that a plan led to begins where that one ended.

    Attributes:
        blocks: For each request, its blocks by instance.
        free: For each instance, blocks nobody would hold.
        lendable: For each instance, blocks it would lend.
        growth: For each instance, blocks that its running sequences will take in a period.
        seconds: For each instance, its part of a step.
        num_spanning: Requests with blocks on several instances.
        num_copied: For each instance, blocks that leave or reach it.
    """

    def __init__(self, view: View, model: StepModel, *, block_size: int, period: int) -> None:
        self.homes = [request.home for request in view.requests]
        self.blocks = [dict(request.blocks) for request in view.requests]
        self.free = [instance.num_free for instance in view.instances]
        self.lendable = [instance.num_lendable for instance in view.instances]
        self.growth = [-(-instance.batch * period // block_size) for instance in view.instances]
        self.requests_on: list[set[int]] = [set() for _ in view.instances]
        for request, blocks in enumerate(self.blocks):
            for instance in blocks:
                self.requests_on[instance].add(request)
        self.num_spanning = sum(len(blocks) > 1 for blocks in self.blocks)
        self.num_copied = [0] * len(view.instances)
        self._model = model
        self._block_size = block_size
        self._base = [model.base_s(instance.batch) for instance in view.instances]
        self._attention: dict[int, float] = {}
        self.seconds = [self._sum(instance) for instance in range(len(view.instances))]

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest instance."""
        return max(self.seconds, default=0.0)

    @property
    def step_s(self) -> float:
        """Seconds of a step: the slowest instance's, and what travels."""
        return self.slowest_s + self._model.communication_s(self.num_spanning)

    @property
    def copies_s(self) -> float:
        """Seconds that all moves cost: the busiest instance's."""
        return max(self.num_copied, default=0) * self._model.profile.copy_block_s

    def attention_s(self, num_blocks: int) -> float:
        """Seconds of one token's attention over so many blocks of one instance."""
        seconds = self._attention.get(num_blocks)
        if seconds is None:
            seconds = self._model.attention_s(num_blocks * self._block_size)
            self._attention[num_blocks] = seconds
        return seconds

    def spare(self, instance: int, home: int) -> int:
        """Blocks that an instance can take of a home's requests and still grow for a period."""
        room = self.free[instance] - self.growth[instance]
        return room if instance == home else min(room, self.lendable[instance])

    def movable(self, request: int, instance: int) -> int:
        """Blocks that may leave an instance: all but one, which may be written to."""
        return self.blocks[request].get(instance, 0) - 1

    def longest_on(self, instance: int) -> Iterator[int]:
        """List the requests with blocks on an instance, most blocks first."""
        yield from sorted(
            self.requests_on[instance],
            key=lambda request: (-self.blocks[request][instance], request),
        )

    def seconds_after(self, move: Move) -> tuple[float, float]:
        """Predict the seconds of source and destination after a move."""
        blocks = self.blocks[move.request]
        here, there = blocks[move.source], blocks.get(move.destination, 0)
        saved = self.attention_s(here) - self.attention_s(here - move.num_blocks)
        added = self.attention_s(there + move.num_blocks) - self.attention_s(there)
        return self.seconds[move.source] - saved, self.seconds[move.destination] + added

    def take_back(self, move: Move, lendable: tuple[int, int]) -> None:
        """Undo the latest move, for which `apply` gave `lendable`."""
        request, source, destination, count = move
        self.apply(Move(request, destination, source, count))
        for instance in (source, destination):
            self.num_copied[instance] -= 2 * count
        self.lendable[source], self.lendable[destination] = lendable

    def apply(self, move: Move) -> tuple[int, int]:
        """Make a move.

        Returns:
            What source and destination would have lent before.
        """
        request, source, destination, count = move
        blocks, home = self.blocks[request], self.homes[request]
        lendable = self.lendable[source], self.lendable[destination]
        self.num_spanning -= len(blocks) > 1
        blocks[source] -= count
        blocks[destination] = blocks.get(destination, 0) + count
        self.requests_on[destination].add(request)
        if not blocks[source]:
            del blocks[source]
            self.requests_on[source].remove(request)
        self.num_spanning += len(blocks) > 1
        # A loan that ends can be made again; a block of its own that goes only adds free space.
        if source != home or self.lendable[source] == self.free[source]:
            self.lendable[source] += count
        if destination != home:
            self.lendable[destination] -= count
        self.free[source] += count
        self.free[destination] -= count
        self.lendable[destination] = min(self.lendable[destination], self.free[destination])
        for instance in (source, destination):
            self.seconds[instance] = self._sum(instance)
            self.num_copied[instance] += count
        return lendable

    def _sum(self, instance: int) -> float:
        return math.fsum(
            [
                self._base[instance],
                *(
                    self.attention_s(self.blocks[request][instance])
                    for request in self.requests_on[instance]
                ),
            ]
        )


class Group:
    """Moves that are kept or taken back together.

    Attributes:
        moves: So far.
        num_blocks: That they move.
        gain_s: Seconds that they save in a period, copies paid.
    """

    def __init__(self, draft: Draft) -> None:
        self.moves: list[Move] = []
        self.num_blocks = 0
        self.gain_s = 0.0
        self._draft = draft
        self._start_s = draft.copies_s
        self._undo: list[tuple[int, int]] = []

    @property
    def copies_s(self) -> float:
        """Seconds that the copies add to those before."""
        return self._draft.copies_s - self._start_s

    def apply(self, move: Move) -> None:
        """Make one more move."""
        self._undo.append(self._draft.apply(move))
        self.moves.append(move)
        self.num_blocks += move.num_blocks

    def cut(self, length: int, gain_s: float) -> None:
        """Keep the first moves, which gain so much, and take the others back."""
        while len(self.moves) > length:
            move = self.moves.pop()
            self._draft.take_back(move, self._undo.pop())
            self.num_blocks -= move.num_blocks
        self.gain_s = gain_s


class Ranking:
    """Finds the slowest instance, and the fastest that can take blocks, as a draft changes."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._fast = [(seconds, i) for i, seconds in enumerate(draft.seconds)]
        self._slow = [(-seconds, i) for i, seconds in enumerate(draft.seconds)]
        heapq.heapify(self._fast)
        heapq.heapify(self._slow)

    def update(self, *instances: int) -> None:
        """Take note that these changed."""
        for instance in instances:
            seconds = self._draft.seconds[instance]
            heapq.heappush(self._fast, (seconds, instance))
            heapq.heappush(self._slow, (-seconds, instance))

    def slowest(self) -> int:
        """Find the instance with most to do, the lowest index among equals."""
        while -self._slow[0][0] != self._draft.seconds[self._slow[0][1]]:
            heapq.heappop(self._slow)
        return self._slow[0][1]

    def fastest(self, source: int) -> int | None:
        """Find the instance with least to do that would lend; not the source itself."""
        while self._fast:
            seconds, instance = self._fast[0]
            is_old = seconds != self._draft.seconds[instance]
            if is_old or instance == source or self._draft.spare(instance, -1) < 1:
                heapq.heappop(self._fast)
                continue
            return instance
        return None
