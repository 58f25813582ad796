"""Watching over an epoch: who is silent, who stands still, who does not leave when it is over."""

import threading
import time
from collections.abc import Callable

from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.world.epoch import Epoch
from serve.world.members import Member
from serve.world.settings import WorldSettings

Lose = Callable[[str, Member | None], None]
"""Told why something cannot go on, and with whom; None for nobody in particular."""


class Watchdog:
    """Looks at an epoch again and again, and tells what is wrong with it."""

    def __init__(self, settings: WorldSettings, lose: Lose) -> None:
        self._settings = settings
        self._lose = lose
        self._last_look = self._last_change = time.monotonic()
        self._progress: object = None
        self._epoch: Epoch | None = None
        self._ended = 0.0

    def look(self, epoch: Epoch, lock: threading.Condition) -> None:
        """Look once.

        Args:
            epoch: The one now.
            lock: Guards it.
        """
        now = time.monotonic()
        with lock:
            epoch.forget_done()
            present = epoch.present
            if now - self._last_look > self._settings.beat_s:
                # It was this process that stood still; what came meanwhile is not read yet.
                for member in present:
                    member.last_heard = now
            self._last_look = now
            progress = epoch.progress
            if progress is None or epoch is not self._epoch or progress != self._progress:
                self._progress, self._last_change = progress, now
            if epoch is not self._epoch or epoch.end is None:
                self._ended = now
            self._epoch = epoch
            is_over, is_forming = epoch.end is not None, epoch.is_forming
        for member in present:
            self._look_at(member, now, is_over=is_over)
        if is_over:
            self._look_at_leaving(present, now - self._ended)
            if not is_forming and now - self._ended > self._settings.stuck_timeout_s:
                self._lose(f"rank 0 did not leave within {now - self._ended:.1f} s", None)
        elif now - self._last_change > self._settings.stuck_timeout_s:
            self._lose(f"nothing has moved for {now - self._last_change:.1f} s", None)

    def _look_at(self, member: Member, now: float, *, is_over: bool) -> None:
        limit = self._settings.heartbeat_timeout_s
        silent_s = now - member.last_heard
        if silent_s > limit:
            member.is_silent = True
            self._lose(f"rank {member.rank} has been silent for {silent_s:.1f} s", member)
        elif not is_over and member.failure is not None and now - member.failed > limit:
            # What fails everywhere is followed by a reset; this failed there alone.
            number, error = member.failure
            self._lose(f"rank {member.rank} failed at command {number}: {error}", member)

    def _look_at_leaving(self, present: list[Member], since: float) -> None:
        """Whoever is told to leave does so at once, but for one that compiles or loads."""
        for member in present:
            is_ready = member.stage == pb.STAGE_READY
            limit = self._settings.leave_s if is_ready else self._settings.stuck_timeout_s
            if since > limit:
                self._lose(f"rank {member.rank} did not leave within {limit:g} s", member)
