"""Errors a caller can tell apart, sorted by what the caller should do.

DistKVError
├── RequestError       also ValueError    the request is wrong: do not retry
│   └── PromptTooLong                     longer than the model or the whole mesh could hold
├── ConfigError        also ValueError    the configuration or the checkpoint is wrong: fix, restart
├── OutOfBlocks        also RuntimeError  the pool is full: retry later
│   └── LendRefused                       an instance will not lend: ask the next creditor
├── QueueFull          also RuntimeError  too many requests wait: retry later
├── EngineStopped      also RuntimeError  the engine no longer takes requests
├── StepFailed         also RuntimeError  a device failed: the engine prefills again by itself
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


class EngineStopped(DistKVError, RuntimeError):
    """An engine that was shut down, or stopped by a broken invariant."""


class StepFailed(DistKVError, RuntimeError):
    """A step that failed on a device; every pool is lost, no request is."""


class InvariantError(DistKVError, RuntimeError):
    """A broken promise of our own: stop serving."""
