"""Public traces of real services, as their files are."""

import csv
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distkv_jax.errors import ConfigError
from serve.bench.workload import Row

MOONCAKE_BLOCK = 512
"""Tokens that one entry of `hash_ids` stands for."""


class Trace(NamedTuple):
    """What a file had.

    Attributes:
        rows: By time; the first is at 0.
        num_skipped: Rows without a prompt or an answer: calls that had failed.
    """

    rows: list[Row]
    num_skipped: int


def read_mooncake(path: str) -> Trace:
    """Read a JSONL with timestamp (milliseconds), input_length, output_length and hash_ids.

    Equal hash ids stand for equal 512 tokens, so that prefix caching can be measured. Source:
    Mooncake, arXiv 2407.00079.

    Raises:
        ConfigError: A line is not of that form; it says which.
        OSError: The file cannot be read.
    """
    return in_order(path, mooncake_rows(path))


def mooncake_rows(path: str) -> Iterator[Row]:
    """Read line by line."""
    with Path(path).expanduser().open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path} line {number}: not JSON: {error}") from None
            if not isinstance(entry, dict):
                raise ConfigError(f"{path} line {number}: must be a JSON object")
            where = f"{path} line {number}"
            blocks = entry.get("hash_ids", [])
            if not isinstance(blocks, list) or not all(map(is_whole, blocks)):
                raise ConfigError(f"{where}: hash_ids={blocks!r} must be a list of whole numbers")
            yield Row(
                number_in(entry, "timestamp", float, where) / 1000,
                int(number_in(entry, "input_length", int, where)),
                int(number_in(entry, "output_length", int, where)),
                tuple(blocks),
            )


def read_burstgpt(path: str) -> Trace:
    """Read a CSV with Timestamp (seconds), Request tokens and Response tokens; all its models.

    Source: BurstGPT, arXiv 2401.17644.

    Raises:
        ConfigError: A line is not of that form; it says which.
        OSError: The file cannot be read.
    """
    names = ("Timestamp", "Request tokens", "Response tokens")
    return in_order(path, csv_rows(path, names, seconds))


def read_azure(path: str) -> Trace:
    """Read a CSV with TIMESTAMP (a date), ContextTokens and GeneratedTokens.

    Source: AzurePublicDataset, the LLM inference traces of 2023 and 2024.

    Raises:
        ConfigError: A line is not of that form; it says which.
        OSError: The file cannot be read.
    """
    return in_order(path, csv_rows(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), date))


def csv_rows(
    path: str, names: Sequence[str], read_time: Callable[[str, str], float]
) -> Iterator[Row]:
    """Read a CSV whose header names the columns of time, prompt and answer."""
    with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in names if name not in (rows.fieldnames or ())]
        if missing:
            raise ConfigError(
                f"{path} line 1: columns must include {', '.join(names)}; "
                f"missing: {', '.join(missing)}"
            )
        for row in rows:
            where = f"{path} line {rows.line_num}"
            time, prompt, answer = (row[name] for name in names)
            if time is None or prompt is None or answer is None:
                raise ConfigError(f"{where}: must have {len(rows.fieldnames or ())} columns")
            yield Row(
                read_time(time, f"{where}: {names[0]}"),
                int(number_in(row, names[1], int, where)),
                int(number_in(row, names[2], int, where)),
            )


def seconds(text: str, where: str) -> float:
    """Read seconds."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{where}={text!r} must be a number of seconds") from None


def date(text: str, where: str) -> float:
    """Read a date, of UTC where it does not say."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{where}={text!r} must be a date as 2023-11-16 18:15:46.6805900"
        ) from None
    zone = moment.tzinfo or datetime.UTC
    return moment.replace(tzinfo=zone).timestamp()


def number_in(
    entry: Mapping[str, Any], name: str, kind: Callable[[Any], float], where: str
) -> float:
    """Read a number that must be there and not below 0."""
    if name not in entry:
        raise ConfigError(f"{where}: {name} is missing")
    value = entry[name]
    try:
        # Some writers give counts as 12.0.
        number = kind(float(value)) if not isinstance(value, bool) else -1
        if number >= 0 and number == float(value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    word = "whole number" if kind is int else "number"
    raise ConfigError(f"{where}: {name}={value!r} must be a {word} of at least 0")


def is_whole(value: object) -> bool:
    """Say whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def in_order(path: str, rows: Iterator[Row]) -> Trace:
    """Sort by time, from 0, without calls that had failed."""
    read = list(rows)
    kept = sorted(
        (row for row in read if row.prompt_tokens and row.output_tokens),
        key=lambda row: row.arrival_s,
    )
    if not kept:
        raise ConfigError(f"{path} has no requests with a prompt and an answer")
    first = kept[0].arrival_s
    moved = [row._replace(arrival_s=row.arrival_s - first) for row in kept]
    return Trace(moved, len(read) - len(kept))
