"""The placement planner: which blocks should move so that steps take less time."""

from collections.abc import Iterator

from distkv_jax.cache.draft import Draft, Group, Move, Ranking
from distkv_jax.cache.performance import StepModel
from distkv_jax.cache.plan import Plan, PlannedMove, net_moves
from distkv_jax.cache.view import View
from distkv_jax.errors import ConfigError


class Planner:
    """Moves blocks from the slowest instance to the fastest while that repays the copies.

    All instances run a step together, so its time is the slowest one's. In turn, until nothing
    helps: instances that will run out of blocks send their longest requests away, so that one
    request spans instances and not all that grow; the slowest instance sends guests home, or
    blocks of its longest request to the one that has least to do; and requests whose blocks fit
    their home again come home, where no query of theirs travels.

    Every accepted group of moves makes the predicted period shorter, copies paid, and no
    destination is filled beyond its own growth. So it ends, and planning again from the
    placement it leads to proposes nothing.

    Source: the greedy placement algorithm of Infinite-LLM (v2),
    <https://arxiv.org/abs/2401.02669>, which weighs throughput per instance; ours the slowest.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        block_size: int,
        period: int,
        limit: int,
        tolerance: float = 0.02,
    ) -> None:
        """Plan for a mesh.

        Args:
            model: Predicts a step.
            block_size: Tokens of a block.
            period: Steps between two plans, in which a move has to repay its copy.
            limit: Blocks that a plan may move.
            tolerance: Two instances that differ by less than this part of a step are equal.

        Raises:
            ConfigError: A number is out of range.
        """
        for name, value in (("block_size", block_size), ("period", period), ("limit", limit)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not 0 <= tolerance < 1:
            raise ConfigError(f"tolerance={tolerance} must be at least 0 and below 1")
        self._model = model
        self._block_size = block_size
        self._period = period
        self._limit = limit
        self._tolerance = tolerance

    def plan(self, view: View) -> Plan:
        """Propose moves for what gManager sees."""
        draft = Draft(view, self._model, block_size=self._block_size, period=self._period)
        before_s = draft.step_s
        is_ahead = [grows > free for grows, free in zip(draft.growth, draft.free, strict=True)]
        left, gain_s = self._limit, 0.0
        while left:
            groups = [*self._ahead(draft, left)]
            left -= _num_blocks(groups)
            groups.append(self._balanced(draft, left))
            left -= groups[-1].num_blocks
            groups.append(self._homeward(draft, left))
            left -= groups[-1].num_blocks
            gain_s += sum(group.gain_s for group in groups)
            if not _num_blocks(groups):
                break
        orders = list(net_moves(view.requests, draft.blocks))
        # Blocks that went on to a third instance are copied once.
        num_copied = [0] * len(view.instances)
        for _, order in orders:
            num_copied[order.source] += order.num_blocks
            num_copied[order.destination] += order.num_blocks
        copies_s = max(num_copied, default=0) * self._model.profile.copy_block_s
        gain_s += draft.copies_s - copies_s
        total = sum(order.num_blocks for _, order in orders)
        moves = sorted(
            (
                PlannedMove(
                    order, request.home, gain_s * order.num_blocks / total, is_ahead[order.source]
                )
                for request, order in orders
            ),
            key=lambda move: (not move.is_ahead, -move.gain_s),
        )
        return Plan(tuple(moves), before_s, draft.step_s, self._period)

    def _ahead(self, draft: Draft, left: int) -> Iterator[Group]:
        """Make room where running sequences will run out of blocks within the period."""
        shortages = [grows - free for grows, free in zip(draft.growth, draft.free, strict=True)]
        short = sorted((-short, i) for i, short in enumerate(shortages) if short > 0)
        if not short:
            return
        ranking = Ranking(draft)
        for negated, instance in short:
            group = Group(draft)
            slowest_s, num_spanning = draft.slowest_s, draft.num_spanning
            # Those that grow into other instances from the time at which this one is full.
            growing = [
                request
                for request in draft.requests_on[instance]
                if draft.homes[request] == instance and len(draft.blocks[request]) == 1
            ]
            for request in draft.longest_on(instance):
                while (
                    (missing := -negated - group.num_blocks) > 0
                    and (movable := draft.movable(request, instance)) > 0
                    and left > group.num_blocks
                ):
                    found = ranking.fastest(instance)
                    if found is None:
                        break
                    spare = draft.spare(found, draft.homes[request])
                    count = min(missing, movable, spare, left - group.num_blocks)
                    if count < 1:
                        break
                    group.apply(Move(request, instance, found, count))
                    ranking.update(instance, found)
            avoided = min(len(growing), -(-len(growing) * -negated // draft.growth[instance]))
            avoided -= draft.num_spanning - num_spanning
            group.gain_s = (
                self._period / 2 * avoided * self._model.profile.spanning_tile_s
                + self._period * (slowest_s - draft.slowest_s)
                - group.copies_s
            )
            if not group.moves or group.gain_s <= 0:
                touched = {instance, *(move.destination for move in group.moves)}
                group.cut(0, 0.0)
                ranking.update(*touched)
                continue
            left -= group.num_blocks
            yield group

    def _balanced(self, draft: Draft, left: int) -> Group:
        """Take load off the slowest instance, as long as the period gets shorter by it."""
        group = Group(draft)
        ranking = Ranking(draft)
        start_s, best_s, best = draft.step_s, 0.0, 0
        while left > group.num_blocks:
            slowest = ranking.slowest()
            move = self._next(draft, ranking, slowest, left - group.num_blocks)
            if move is None:
                break
            group.apply(move)
            ranking.update(move.source, move.destination)
            step_s = draft.seconds[ranking.slowest()] + self._model.communication_s(
                draft.num_spanning
            )
            gain_s = self._period * (start_s - step_s) - group.copies_s
            if gain_s > best_s:
                best_s, best = gain_s, len(group.moves)
        group.cut(best, best_s)
        return group

    def _next(self, draft: Draft, ranking: Ranking, slowest: int, left: int) -> Move | None:
        """Choose what leaves the slowest instance: a guest for its home, else of the longest."""
        requests = list(draft.longest_on(slowest))
        for request in requests:
            home = draft.homes[request]
            if home != slowest:
                most = min(draft.blocks[request][slowest], draft.spare(home, home), left)
                move = self._evened(draft, Move(request, slowest, home, most))
                if move is not None:
                    return move
        fastest = ranking.fastest(slowest)
        if not requests or fastest is None:
            return None
        longest = requests[0]
        spare = draft.spare(fastest, draft.homes[longest])
        most = min(draft.movable(longest, slowest), spare, left)
        return self._evened(draft, Move(longest, slowest, fastest, most))

    def _evened(self, draft: Draft, most: Move) -> Move | None:
        """Reduce a move to what leaves its source no faster than its destination."""
        source_s, destination_s = draft.seconds[most.source], draft.seconds[most.destination]
        if source_s - destination_s <= self._tolerance * source_s:
            return None
        low, high = 0, max(most.num_blocks, 0)
        while low < high:
            middle = (low + high + 1) // 2
            source_s, destination_s = draft.seconds_after(most._replace(num_blocks=middle))
            low, high = (middle, high) if source_s >= destination_s else (low, middle - 1)
        return most._replace(num_blocks=low) if low else None

    def _homeward(self, draft: Draft, left: int) -> Group:
        """Call requests home that fit there again without making the step slower."""
        group = Group(draft)
        slowest_s, start = draft.slowest_s, draft.num_spanning
        best_s, best = 0.0, 0
        away = sorted(
            (sum(blocks.values()) - blocks.get(draft.homes[request], 0), request)
            for request, blocks in enumerate(draft.blocks)
            if len(blocks) > 1
        )
        for count, request in away:
            home, blocks = draft.homes[request], draft.blocks[request]
            at_home = blocks.get(home, 0)
            added_s = draft.attention_s(at_home + count) - draft.attention_s(at_home)
            if (
                count > min(draft.spare(home, home), left - group.num_blocks)
                or draft.seconds[home] + added_s > slowest_s
            ):
                continue
            for instance, num_blocks in sorted(blocks.items()):
                if instance != home:
                    group.apply(Move(request, instance, home, num_blocks))
            saved_s = self._model.communication_s(start) - self._model.communication_s(
                draft.num_spanning
            )
            gain_s = self._period * saved_s - group.copies_s
            if gain_s > best_s:
                best_s, best = gain_s, len(group.moves)
        group.cut(best, best_s)
        return group


def _num_blocks(groups: list[Group]) -> int:
    return sum(group.num_blocks for group in groups)
