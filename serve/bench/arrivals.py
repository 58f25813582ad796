"""When requests are sent.

Source: the arrivals of `vllm bench serve`: gaps are gamma distributed, the last request comes at
`count / rate` seconds exactly, so that runs with other seeds have the same mean rate.
"""

import math

import numpy as np


def arrivals(count: int, rate: float, *, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Draw times of sending.

    Args:
        count: How many.
        rate: Mean requests in a second; inf sends all at 0.
        burstiness: Shape of the gamma distribution: gaps have a coefficient of variation of
            1 / sqrt(burstiness); 1 is a Poisson process, inf makes all gaps equal.
        seed: The same seed gives the same times.

    Returns:
        Seconds since the start, not falling.
    """
    if math.isinf(rate):
        return [0.0] * count
    if math.isinf(burstiness):
        gaps = np.full(count, 1 / rate)
    else:
        gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), count)
    times = np.cumsum(gaps)
    # Tiny shapes underflow to gaps of 0: then all come at once, at the end.
    scale = count / rate / times[-1] if times[-1] > 0 else 0.0
    return (times * scale).tolist() if scale else [count / rate] * count
