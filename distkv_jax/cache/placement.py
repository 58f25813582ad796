"""The placement map: how many blocks of each instance are charged to each request."""

from collections.abc import Mapping

from distkv_jax.cache.messages import Heartbeat


class PlacementMap:
    """Follows the entries of heartbeats, which tell changes only.

    Soft state: a heartbeat in full starts an instance afresh; another one is taken in only if
    it is the one after the last. So what is known of an instance is always what it was at
    heartbeat `heard(instance)`.
    """

    NEVER = -1
    """What `heard` gives for an instance that was not heard in full yet."""

    def __init__(self, num_instances: int) -> None:
        self._heard = [self.NEVER] * num_instances
        self._entries: list[dict[tuple[str, int], int]] = [{} for _ in range(num_instances)]
        self._requests: dict[str, dict[int, int]] = {}

    def apply(self, heartbeat: Heartbeat) -> bool:
        """Take in a heartbeat, unless it is old or one before it is missing.

        Returns:
            Whether it was taken in.
        """
        instance, heard = heartbeat.instance, self._heard[heartbeat.instance]
        if heartbeat.number <= heard:
            return False
        if not heartbeat.is_full and (heard == self.NEVER or heartbeat.number != heard + 1):
            return False
        self._heard[instance] = heartbeat.number
        entries = dict.fromkeys(self._entries[instance], 0) if heartbeat.is_full else {}
        for entry in heartbeat.entries:
            entries[entry.request_id, entry.home] = entry.num_blocks
        for (request_id, home), num_blocks in entries.items():
            self._set(instance, request_id, home, num_blocks)
        return True

    def heard(self, instance: int) -> int:
        """Tell the number of the last heartbeat that was taken in, or `NEVER`."""
        return self._heard[instance]

    def entries(self, instance: int) -> Mapping[tuple[str, int], int]:
        """List the blocks of one instance, by request and home; owned by this object."""
        return self._entries[instance]

    def requests(self) -> dict[str, dict[int, int]]:
        """List the blocks of every request, by request and instance."""
        return {request_id: dict(blocks) for request_id, blocks in self._requests.items()}

    def _set(self, instance: int, request_id: str, home: int, num_blocks: int) -> None:
        change = num_blocks - self._entries[instance].pop((request_id, home), 0)
        if num_blocks:
            self._entries[instance][request_id, home] = num_blocks
        blocks = self._requests.setdefault(request_id, {})
        blocks[instance] = blocks.get(instance, 0) + change
        if not blocks[instance]:
            del blocks[instance]
        if not blocks:
            del self._requests[request_id]
