"""Errors a caller can tell apart, sorted by what the caller should do.

DistKVError
├── RequestError       also ValueError    the request is wrong: do not retry
│   ├── PromptTooLong                     longer than the model or the whole mesh could hold
│   ├── DuplicateRequest                  a live request has its name: choose another
│   ├── RequestNotFound                   no live request of yours has that name
│   └── NotBuilt                          asked of the service what it does not have
├── Unauthenticated                       no key that the service knows: give one
├── NotAllowed                            a key that may not do this
├── ConfigError        also ValueError    the configuration or the checkpoint is wrong: fix, restart
├── OutOfBlocks        also RuntimeError  the pool is full: retry later
│   └── LendRefused                       an instance will not lend: ask the next creditor
├── QueueFull          also RuntimeError  too many requests wait: retry later
│   └── QuotaExceeded                     too many of yours: retry when some have ended
├── SlowReader         also RuntimeError  a stream that nobody read: read faster, or do not stream
├── RequestCancelled   also RuntimeError  ended because somebody asked
├── DeadlineExceeded   also TimeoutError  not finished in the time given
├── Unavailable        also RuntimeError  the service starts, drains or is away: retry later
├── RequestLost        also RuntimeError  it failed after its first token: ask anew
├── EngineStopped      also RuntimeError  the engine no longer takes requests
├── StepFailed         also RuntimeError  a device failed: the engine prefills again by itself
├── WorldLost          also ConnectionError  a process of the mesh is gone: no step can run
└── InvariantError     also RuntimeError  our bug: stop serving
"""


class DistKVError(Exception):
    """Anything this package raises on purpose."""


class RequestError(DistKVError, ValueError):
    """A request that can never be served as it is: do not retry."""


class PromptTooLong(RequestError):
    """A request that needs more positions or blocks than could ever be had.

    Attributes:
        given: Tokens the request needs.
        limit: Tokens that are allowed.
    """

    def __init__(self, message: str, *, given: int, limit: int) -> None:
        super().__init__(message)
        self.given = given
        self.limit = limit


class DuplicateRequest(RequestError):
    """A request with the name of a live one."""


class RequestNotFound(RequestError):
    """A name that no live request of the caller has."""


class NotBuilt(RequestError):
    """Something that the service does not have."""


class Unauthenticated(DistKVError):
    """A caller whose key is missing or not known."""


class NotAllowed(DistKVError):
    """A caller who is known and may not do this."""


class ConfigError(DistKVError, ValueError):
    """A setting, mesh or checkpoint that cannot work: fix it, start again."""


class OutOfBlocks(DistKVError, RuntimeError):
    """Too few free blocks; nothing was taken.

    Attributes:
        needed: Blocks asked for.
        free: Blocks that could have been had.
    """

    def __init__(self, message: str, *, needed: int, free: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free


class LendRefused(OutOfBlocks):
    """An instance that has no blocks left to lend; nothing was taken."""


class QueueFull(DistKVError, RuntimeError):
    """A queue that takes no more requests for now; the request was not queued."""


class QuotaExceeded(QueueFull):
    """A caller with too many requests under way; the request was not queued."""


class SlowReader(DistKVError, RuntimeError):
    """A stream with more unread tokens than are kept; its request was cancelled."""


class RequestCancelled(DistKVError, RuntimeError):
    """A request that was ended before its time, because somebody asked."""


class DeadlineExceeded(DistKVError, TimeoutError):
    """A request that did not end in the time its caller gave it."""


class Unavailable(DistKVError, RuntimeError):
    """A service that takes no requests now; nothing of the request is lost by trying again."""


class RequestLost(DistKVError, RuntimeError):
    """A request that failed when it had given tokens already; it may be asked anew."""


class EngineStopped(DistKVError, RuntimeError):
    """An engine that was shut down, or stopped by a broken invariant."""


class StepFailed(DistKVError, RuntimeError):
    """A step that failed on a device; every pool is lost, no request is."""


class WorldLost(DistKVError, ConnectionError):
    """A process that has a part of the mesh is gone, silent or astray: no step can run."""


class InvariantError(DistKVError, RuntimeError):
    """A broken promise of our own: stop serving."""
