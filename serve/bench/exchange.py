"""One request and its times, as a user sees them.

Source: the definitions of `vllm bench serve`. TTFT is from sending to the first piece, ITL between
two pieces that follow each other, E2EL to the last piece. Servers put several tokens into one piece
(ours after `stream_interval_ms`, others alike), and the network may join pieces: ITL is a time per
piece, not per token. TPOT divides by tokens.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from serve.bench.backend import Backend, Failed


class Outcome(NamedTuple):
    """What became of a request.

    Attributes:
        start_s: When it was sent, on the clock of the measurement.
        prompt_tokens: By the server's count, else by ours.
        output_tokens: By the server's count, else the number of pieces.
        has_usage: Whether the server counted.
        ttft_s: From sending to the first piece.
        itl_s: Between pieces.
        latency_s: From sending to the last piece.
        queue_s: Wait in the client for others to end, before sending.
        text: The answer.
        error: How it failed; None if it did not.
    """

    start_s: float
    prompt_tokens: int
    output_tokens: int = 0
    has_usage: bool = True
    ttft_s: float = 0.0
    itl_s: tuple[float, ...] = ()
    latency_s: float = 0.0
    queue_s: float = 0.0
    text: str = ""
    error: str | None = None


async def exchange(
    backend: Backend,
    request: Any,
    prompt_tokens: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Send a request and read its answer; a failure is an outcome too.

    Args:
        backend: Where to.
        request: What the backend's `prepare` wrote.
        prompt_tokens: Our count, for where the server does not tell.
        clock: Gives seconds.
    """
    times, texts, usage, error = [], [], None, None
    start = clock()
    try:
        async for piece in backend.stream(request):
            if piece.is_output:
                times.append(clock())
                texts.append(piece.text)
            usage = piece.usage or usage
        if not times:
            error = "the answer has no tokens"
    except Failed as failure:
        error = str(failure) or "the request failed"
    return Outcome(
        start,
        prompt_tokens if usage is None else usage.prompt_tokens,
        len(times) if usage is None else usage.output_tokens,
        usage is not None,
        times[0] - start if times else 0.0,
        tuple(after - before for before, after in zip(times, times[1:], strict=False)),
        times[-1] - start if times else 0.0,
        text="".join(texts),
        error=error,
    )
