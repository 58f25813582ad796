"""From the fields of a body to sampling parameters, and how much there is to check."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distkv_jax.engine.sampling_params import SamplingParams
from serve.http.bodies import SamplingBody

DIRECT = tuple(
    field.name
    for field in dataclasses.fields(SamplingParams)
    if field.name in SamplingBody.model_fields and field.name != "logit_bias"
)
"""Fields that mean the same in a body and in `SamplingParams`."""


def sampling_of(
    body: SamplingBody, defaults: SamplingParams, others: Mapping[str, Any]
) -> SamplingParams:
    """Read sampling parameters; what is not given is as in `defaults`.

    Args:
        body: Fields with the names they have in `SamplingParams`.
        defaults: What the model's checkpoint recommends.
        others: Those with other names in the body; they come first.

    Raises:
        RequestError: A value is not allowed.
    """
    given = {name: value for name in DIRECT if (value := getattr(body, name)) is not None}
    if body.logit_bias is not None:
        given["logit_bias"] = {token_of(key): bias for key, bias in body.logit_bias.items()}
    given |= {name: value for name, value in others.items() if value is not None}
    return dataclasses.replace(defaults, **given)


def size_of(body: SamplingBody) -> int:
    """Count what takes time to check."""
    return len(body.allowed_token_ids or ()) + len(body.logit_bias or ())


def token_of(key: str) -> int | str:
    """Read a key of `logit_bias`, which JSON has as text; others are refused with the rest."""
    return int(key) if key.isascii() and key.isdecimal() and len(key) < 19 else key
