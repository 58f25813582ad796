"""Refuses messages that are too large to be right before they are parsed.

Parsing holds the interpreter's lock, in whatever thread: 16 MiB of token ids would stop every
stream for a quarter of a second.
"""

from collections.abc import Iterator
from typing import NamedTuple

from distkv_jax.engine.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from distkv_jax.errors import PromptTooLong, RequestError
from serve.errors import FieldError
from serve.proto.distkv.v1 import inference_pb2 as pb

SMALL_MESSAGE = 65_536
"""Bytes of a message that is parsed without a look."""
MAX_FIELDS = 64
"""A request has six, each once."""
TOKEN_BYTES = 6
"""Of a token id that is not negative, with the tag it has if the list is not packed."""
SAMPLING_BYTES = (
    TOKEN_BYTES * (MAX_ALLOWED_TOKEN_IDS + MAX_STOP_TOKEN_IDS)
    + (4 * MAX_STOP_STRING_CHARS + 4) * (MAX_STOP_STRINGS + MAX_BAD_WORDS)
    + 24 * MAX_LOGIT_BIAS
    + 1024
)
"""More than parameters within their limits take."""

IDS, SAMPLING = (
    pb.GenerateRequest.DESCRIPTOR.fields_by_name[name].number for name in ("token_ids", "sampling")
)
VARINT, LENGTH = 0, 2
FIXED = {1: 8, 5: 4, 3: 0, 4: 0}
"""Bytes of the other kinds; those between the two ends of a group count as fields."""


class Field(NamedTuple):
    """A field of a message in its encoded form, and how many bytes its value has."""

    number: int
    num_bytes: int


def check_generate(message: bytes, max_model_len: int) -> None:
    """Look at the sizes of an encoded `GenerateRequest`.

    Raises:
        PromptTooLong: Its token ids are more than the model takes.
        RequestError: Its sampling parameters are more than allowed, or it has too many fields.
    """
    if len(message) <= SMALL_MESSAGE:
        return
    num_ids = num_sampling = 0
    for count, field in enumerate(fields_of(message), start=1):
        if count > MAX_FIELDS:
            raise RequestError(f"the request has more than {MAX_FIELDS} fields, each may be once")
        num_ids += field.num_bytes * (field.number == IDS)
        num_sampling += field.num_bytes * (field.number == SAMPLING)
    if num_ids > TOKEN_BYTES * (max_model_len + 4):
        at_least = num_ids // TOKEN_BYTES
        raise PromptTooLong(
            f"prompt has {num_ids} bytes of token ids, at least {at_least} tokens, the model's "
            f"limit is {max_model_len} with at least 1 generated token",
            given=at_least,
            limit=max_model_len - 1,
        )
    if num_sampling > SAMPLING_BYTES:
        raise FieldError(f"sampling has {num_sampling} bytes, limit {SAMPLING_BYTES}", "sampling")


def fields_of(message: bytes) -> Iterator[Field]:
    """Walk over a message's own fields; stops where it is broken, which the parser tells."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == LENGTH:
            size, place = _varint(message, place)
        elif kind == VARINT:
            size, place = 0, _varint(message, place)[1]
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            return
        yield Field(number, size)
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte, the lowest first; also says where it ends."""
    value = shift = 0
    for byte in message[place : place + 10]:
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return value, place
    return 0, len(message)
