"""What MicroAttention returns: attention over some of the keys, ready to be merged."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Partial(NamedTuple):
    """Attention of some queries over some keys.

    A query that saw no key is exactly (0, -inf): the identity of ScaleReduce.

    Attributes:
        out: Normalised output, in the dtype of the queries.
        lse: Natural log of the sum of exponentiated scores, always float32.
    """

    out: Float[Array, "*rows head_dim"]
    lse: Float[Array, "*rows"]
