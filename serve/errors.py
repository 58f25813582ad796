"""The one table from our errors to what a caller sees over gRPC and HTTP, and back."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

import distkv_jax.errors as ours
from distkv_jax.errors import DistKVError, PromptTooLong, RequestError

logger = logging.getLogger(__name__)

Code = grpc.StatusCode
Metadata = tuple[tuple[str, str | bytes], ...]

DOMAIN = "distkv"
DETAILS_KEY = "grpc-status-details-bin"
MAX_TEXT_BYTES = 1000
"""Of an error's text: texts quote what was given, and clients take about 8 KiB of trailers."""


class Row(NamedTuple):
    """How one kind of error is told.

    Attributes:
        code: Of gRPC.
        http: Status of HTTP.
        openai: `type` in an error body of OpenAI's form.
        openai_code: `code` in it, for programs.
        retry_s: Seconds after which the same call may succeed; None where it will not.
    """

    code: Code
    http: int
    openai: str
    openai_code: str
    retry_s: float | None = None


INVALID, BUSY, AWAY = "invalid_request_error", "rate_limit_error", "service_unavailable_error"

TABLE: dict[type[Exception], Row] = {
    # The request
    RequestError: Row(Code.INVALID_ARGUMENT, 400, INVALID, "invalid_value"),
    ours.PromptTooLong: Row(Code.INVALID_ARGUMENT, 400, INVALID, "context_length_exceeded"),
    ours.DuplicateRequest: Row(Code.ALREADY_EXISTS, 409, INVALID, "duplicate_request_id"),
    ours.RequestNotFound: Row(Code.NOT_FOUND, 404, INVALID, "request_not_found"),
    # Not 501: clients of OpenAI's try those again.
    ours.NotBuilt: Row(Code.UNIMPLEMENTED, 400, INVALID, "not_built"),
    # The caller
    ours.Unauthenticated: Row(Code.UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key"),
    ours.NotAllowed: Row(Code.PERMISSION_DENIED, 403, "permission_error", "not_allowed"),
    # Too much at once
    ours.QueueFull: Row(Code.RESOURCE_EXHAUSTED, 429, BUSY, "rate_limit_exceeded", retry_s=1.0),
    ours.OutOfBlocks: Row(Code.RESOURCE_EXHAUSTED, 429, BUSY, "out_of_blocks", retry_s=1.0),
    ours.SlowReader: Row(Code.RESOURCE_EXHAUSTED, 429, BUSY, "slow_reader"),
    # Ended before its time
    ours.RequestCancelled: Row(Code.CANCELLED, 499, "cancelled_error", "request_cancelled"),
    ours.DeadlineExceeded: Row(Code.DEADLINE_EXCEEDED, 504, "timeout_error", "deadline_exceeded"),
    # The service
    ours.Unavailable: Row(Code.UNAVAILABLE, 503, AWAY, "unavailable", retry_s=1.0),
    ours.EngineStopped: Row(Code.UNAVAILABLE, 503, AWAY, "engine_stopped", retry_s=1.0),
    ours.RequestLost: Row(Code.ABORTED, 500, "server_error", "request_lost"),
    ours.ConfigError: Row(Code.FAILED_PRECONDITION, 500, "server_error", "config_error"),
    ours.DistKVError: Row(Code.INTERNAL, 500, "server_error", "internal_error"),
    Exception: Row(Code.INTERNAL, 500, "server_error", "internal_error"),
}
"""The row of an error is that of its class, else of the nearest base class with one."""


class FieldError(RequestError):
    """A request of which one field cannot be.

    Attributes:
        field: Its path in the message, such as `sampling.top_p`.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class FieldNotBuilt(FieldError, ours.NotBuilt):
    """A request of which one field asks for what the service does not have."""


class Told(NamedTuple):
    """An error as it goes out.

    Attributes:
        row: Its row of the table.
        text: What the caller reads.
        metadata: Trailers with its `google.rpc.Status`.
    """

    row: Row
    text: str
    metadata: Metadata


def row_of(error: Exception) -> Row:
    """Look up the row of an error."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def tell(error: Exception) -> Told:
    """Say what a caller sees of an error; of the server's own trouble the log has the text."""
    if isinstance(error, DecodeError):
        error = RequestError("the request is not a valid message of its type")
    row = row_of(error)
    if isinstance(error, ours.EngineStopped):
        logger.error("a request was refused: %s", error)
        text = "the engine has stopped, the server's log says why"
    elif isinstance(error, DistKVError) and row.code is not Code.INTERNAL:
        text = "; ".join([str(error), *getattr(error, "__notes__", ())])
    else:
        logger.error("an error that nobody expected", exc_info=error)
        text = "internal error, the server's log has it"
    text = shortened(text)
    status = status_pb2.Status(code=row.code.value[0], message=text)
    info = error_details_pb2.ErrorInfo(reason=reason_of(type(error)), domain=DOMAIN)
    if isinstance(error, PromptTooLong):
        info.metadata.update(given=str(error.given), limit=str(error.limit))
    status.details.add().Pack(info)
    if (field := field_of(error)) is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if row.retry_s is not None:
        delay = Duration(nanos=int(row.retry_s % 1 * 1e9), seconds=int(row.retry_s))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return Told(row, text, ((DETAILS_KEY, status.SerializeToString()),))


def field_of(error: Exception) -> str | None:
    """Tell which field of a request an error is about; None for no single one."""
    match error:
        case FieldError():
            return error.field
        case PromptTooLong():
            return "prompt"
    return None


@contextlib.contextmanager
def naming(paths: Mapping[str, str]) -> Iterator[None]:
    """Turn a `RequestError` into a `FieldError` where its text, as ours do, begins with a field.

    Errors of a narrower class stay what they are.

    Args:
        paths: Where a field is in the request, by the first word of the errors about it.
    """
    try:
        yield
    except RequestError as error:
        word = str(error).partition(" ")[0].partition("=")[0]
        if type(error) is RequestError and word in paths:
            named = FieldError(str(error), paths[word])
            for note in getattr(error, "__notes__", ()):
                named.add_note(note)
            raise named from error
        raise


class Heard(NamedTuple):
    """A failed call as a client understands it.

    Attributes:
        error: One of ours.
        code: Of gRPC.
        retry_s: Seconds after which the server wants to be asked again; None if it did not say.
    """

    error: DistKVError
    code: Code
    retry_s: float | None


def hear(code: Code, text: str, metadata: Iterable[tuple[str, str | bytes]]) -> Heard:
    """Turn a status back into the error that the server raised, or the nearest one."""
    status = status_pb2.Status()
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                break
    kind, given, retry_s = KINDS_BY_CODE.get(code, DistKVError), {}, None
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            kind, given = KINDS_BY_REASON.get(info.reason, kind), info.metadata
        elif detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return Heard(made(kind, text, given), code, retry_s)


def made(kind: type[DistKVError], text: str, given: Mapping[str, str]) -> DistKVError:
    """Make an error of a class by its text, and its numbers where it has any."""
    if kind is PromptTooLong:
        return PromptTooLong(
            text, given=int(given.get("given", 0)), limit=int(given.get("limit", 0))
        )
    return kind(text)


def reason_of(kind: type[Exception]) -> str:
    """Name an error's class in an `ErrorInfo`; a class of this package goes by its base."""
    return next((one.__name__ for one in kind.__mro__ if one.__name__ in KINDS_BY_REASON), "")


def shortened(text: str) -> str:
    """Cut a text that is too long for a trailer, in the middle."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return encoded.decode()
    half = MAX_TEXT_BYTES // 2 - 2
    return f"{encoded[:half].decode(errors='ignore')}...{encoded[-half:].decode(errors='ignore')}"


KINDS_BY_REASON: dict[str, type[DistKVError]] = {
    kind.__name__: kind
    for kind in vars(ours).values()
    # Those that count blocks stay in the process that has the blocks.
    if isinstance(kind, type)
    and issubclass(kind, DistKVError)
    and not issubclass(kind, ours.OutOfBlocks)
}
# Last come, last served: the first row of a code is its most general error.
KINDS_BY_CODE: dict[Code, type[DistKVError]] = {
    row.code: kind
    for kind, row in reversed(TABLE.items())
    if issubclass(kind, DistKVError) and not issubclass(kind, ours.OutOfBlocks)
} | {Code.INTERNAL: DistKVError, Code.UNKNOWN: DistKVError}
