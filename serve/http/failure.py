"""An error as HTTP tells it: a status, OpenAI's body, and when to try again."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from distkv_jax.errors import RequestError, Unauthenticated
from serve.errors import field_of, tell


class HttpError(RequestError):
    """A request that is wrong in a way that only HTTP has.

    Attributes:
        status: Of HTTP.
        code: As in the error's body, for programs.
        field: Which field is wrong; None where none is.
        headers: To be answered besides.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.headers = dict(headers or {})


def failure_response(error: Exception) -> JSONResponse:
    """Answer with an error; one that is not ours is logged and not shown."""
    row, text, _ = tell(error)
    status, code, field, headers = row.http, row.openai_code, field_of(error), {}
    if isinstance(error, HttpError):
        status, code, field, headers = error.status, error.code, error.field, error.headers
    if row.retry_s is not None:
        headers = {"retry-after": str(math.ceil(row.retry_s))}
    if isinstance(error, Unauthenticated):
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse(body_of(text, row.openai, code, field), status, headers)


def failure_event(error: Exception) -> dict[str, Any]:
    """Tell an error in a stream that has begun, where no status can be given any more."""
    row, text, _ = tell(error)
    return body_of(text, row.openai, row.openai_code, field_of(error))


def body_of(text: str, kind: str, code: str, field: str | None) -> dict[str, Any]:
    """Write an error as OpenAI does."""
    return {"error": {"message": text, "type": kind, "param": field, "code": code}}
