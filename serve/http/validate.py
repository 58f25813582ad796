"""From bytes to a checked body; what is wrong is told in our words, by the field's path."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from distkv_jax.errors import RequestError
from serve.errors import FieldError, FieldNotBuilt
from serve.http.bodies import Body

B = TypeVar("B", bound=Body)

ALLOWED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length} entries",
    "too_long": "a list of at most {max_length} entries",
}
"""What is allowed, by pydantic's kind of error."""
UNIONS = {
    "stop": "a string or a list of at most 16 strings",
    "content": 'text or a list of parts {"type": "text", "text": TEXT}; images, audio and files '
    "are not built",
}
"""What is allowed in fields of several types, of which pydantic tells an error for each."""
MAX_SHOWN_CHARS = 60


def parsed(kind: type[B], body: bytes) -> B:
    """Read a body.

    Raises:
        RequestError: It is not JSON, or not an object.
        FieldError: A field is unknown, missing, or of another type.
        FieldNotBuilt: A field asks for what the server does not have.
    """
    try:
        value = from_json(body)
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"the body is {shown(value)}, must be an object")
    try:
        checked = kind.model_validate(value)
    except ValidationError as error:
        raise told(error) from error
    for one, path in objects_of(checked, ""):
        refuse_unknown(one, path)
        refuse_not_built(one, path)
    return checked


def told(error: ValidationError) -> FieldError:
    """Say the first thing that is wrong as our other errors do."""
    # Without what pydantic could say more: an error may quote the whole body.
    first = error.errors(include_url=False)[0]
    parts: list[int | str] = []
    for part in first["loc"]:
        parts.append(part)
        if part in UNIONS and first["type"] != "missing":
            path = path_of(parts)
            return FieldError(f"{path} must be {UNIONS[str(part)]}", path)
    path = path_of(parts)
    if first["type"] == "missing":
        return FieldError(f"{path} is missing", path)
    allowed = ALLOWED.get(first["type"])
    if allowed is None:
        return FieldError(f"{path}={shown(first['input'])}: {first['msg'].lower()}", path)
    allowed = allowed.format_map(first.get("ctx", {}))
    return FieldError(f"{path}={shown(first['input'])} must be {allowed}", path)


def objects_of(body: Body, path: str) -> Iterator[tuple[Body, str]]:
    """Give an object and those in it, each with what stands before the names of its fields."""
    yield body, path
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, Body):
            yield from objects_of(value, f"{path}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Body):
            for index, one in enumerate(value):
                yield from objects_of(one, f"{path}{name}[{index}].")


def refuse_unknown(body: Body, path: str) -> None:
    """Refuse fields that nobody would read; one that is null asks for nothing.

    Raises:
        FieldError: There is one.
    """
    for name, value in (body.__pydantic_extra__ or {}).items():
        if value is None:
            continue
        known = ", ".join(sorted(type(body).model_fields))
        # The log has the name too, so it must be one line and no long one.
        is_plain = name.isascii() and name.isidentifier() and len(name) <= MAX_SHOWN_CHARS
        field = f"{path}{name if is_plain else shown(name)}"
        raise FieldError(f"unknown field {shown(name)}, known: {known}", field)


def refuse_not_built(body: Body, path: str) -> None:
    """Refuse fields whose silence would be a wrong answer.

    Raises:
        FieldNotBuilt: One asks for something.
    """
    for name in body.not_built.keys() & type(body).model_fields.keys():
        value, harmless = getattr(body, name), body.not_built[name]
        if value is None or any(type(value) is type(one) and value == one for one in harmless):
            continue
        allowed = " or ".join(["null", *map(shown, harmless)])
        field = f"{path}{name}"
        raise FieldNotBuilt(f"{field}={shown(value)} is not built, must be {allowed}", field)


def path_of(parts: Iterable[int | str]) -> str:
    """Write the place of a field as OpenAI does: `messages[0].content`."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def shown(value: Any) -> str:
    """Quote what was given, not all of it: a list is counted rather than written out."""
    if isinstance(value, list | dict) and len(value) > 4:
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARS:
        value = f"{value[:MAX_SHOWN_CHARS]}..."
    text = repr(value)
    return text if len(text) <= 2 * MAX_SHOWN_CHARS else f"{text[: 2 * MAX_SHOWN_CHARS]}..."
