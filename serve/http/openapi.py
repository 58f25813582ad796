"""The OpenAPI document, made from the bodies that are checked."""

from typing import Any

from pydantic.json_schema import models_json_schema

import distkv_jax
from serve.http.bodies import ChatBody, CompletionBody
from serve.http.calls import TIMEOUT_HEADER
from serve.http.structure import MAX_PARTS

REF = "#/components/schemas/{model}"
STATUSES = {
    "400": "A value is not allowed; param names it.",
    "401": "No key, or one that is not known.",
    "404": "Another model than the one that is served.",
    "408": "The body came too slowly.",
    "409": "The name is in use by a live request.",
    "413": "The body is too large, or has too many parts.",
    "415": "The body is not JSON.",
    "421": "Sent to another host name than this machine's own.",
    "429": "Too much at once.",
    "499": "Aborted by its caller.",
    "500": "It failed after its first token, or a bug.",
    "503": "Draining, or too many connections.",
    "504": "The time given is over.",
}
NOT_HERE = (
    "OpenAI's interface. What people and Prometheus look at is no part of it: the live page at /, "
    "its data at /live, and /metrics."
)
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
TIMEOUT: dict[str, Any] = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds after which the request ends with 504, queued or running.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def document(*, has_keys: bool, max_values: int) -> dict[str, Any]:
    """Describe the door.

    Args:
        has_keys: Whether callers need one.
        max_values: As for `check_structure`.
    """
    bodies = (
        f"A body has at most {MAX_PARTS} strings, names, lists and objects, and {max_values} "
        "other values, such as token ids."
    )
    _, definitions = models_json_schema(
        [(CompletionBody, "validation"), (ChatBody, "validation")], ref_template=REF
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DistKV-JAX",
            "version": distkv_jax.__version__,
            "description": f"{NOT_HERE} {bodies}",
        },
        "paths": {
            "/v1/completions": {"post": generating("Complete prompts.", "CompletionBody")},
            "/v1/chat/completions": {"post": generating("Continue a conversation.", "ChatBody")},
            "/v1/models": {"get": reading("List the model that is served.")},
            "/v1/models/{name}": {
                "get": reading("Tell about a model.", "404")
                | {
                    "parameters": [
                        {
                            "name": "name",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string", "minLength": 1},
                        }
                    ]
                }
            },
            "/health": {"get": health()},
            "/version": {"get": reading("Say what serves.")},
            "/openapi.json": {"get": reading("Give this document.")},
        },
        "components": {
            "schemas": {**definitions["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if has_keys else [],
    }


def generating(summary: str, body: str) -> dict[str, Any]:
    """Describe a path that generates."""
    schema = {"$ref": REF.format(model=body)}
    answer = {
        "application/json": {"schema": {"type": "object", "required": ["id", "choices", "usage"]}},
        # OpenAPI 3.1 has no words for events; as text they would each have to be a string.
        "text/event-stream": {},
    }
    return {
        "summary": summary,
        "parameters": [TIMEOUT],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "Generated; as events with stream=true.", "content": answer}
        }
        | failures(*STATUSES),
    }


def reading(summary: str, *statuses: str) -> dict[str, Any]:
    """Describe a path that only tells."""
    answer = {"application/json": {"schema": {"type": "object"}}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "Told.", "content": answer}}
        | failures("401", "421", "503", *statuses),
    }


def health() -> dict[str, Any]:
    """Describe the path of probes, which tells where it fails as where it does not."""
    described = reading("Say whether requests are taken.")
    unhealthy = {
        "description": "Draining, too many connections, or an engine that does not answer.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    return {
        **described,
        "security": [],
        "responses": described["responses"] | {"503": unhealthy},
    }


def failures(*statuses: str) -> dict[str, Any]:
    """Describe errors."""
    content = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}
    return {one: {"description": STATUSES[one], "content": content} for one in statuses}
