"""Command-line flags made from dataclass fields, so that a default is written once."""

import argparse
import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypedDict, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

# How one value is read from text, and what stands for it in the help.
READERS: dict[object, tuple[Callable[[str], object], str]] = {
    int: (int, "N"),
    float: (float, "X"),
    str: (str, "NAME"),
}


class Spelling(TypedDict, total=False):
    """How argparse is told to read a value."""

    action: str | type[argparse.Action]
    type: Callable[[str], object]
    choices: tuple[str, ...]
    metavar: str


class Parser(argparse.ArgumentParser):
    """A parser whose errors look like every other error of the command, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong in one line, where to read more in another, and exit."""
        self.exit(2, f"error: {message}\nhint: `{self.prog} --help` lists every setting\n")


def add_fields(
    parser: argparse.ArgumentParser,
    title: str,
    settings: type,
    *,
    only: Sequence[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    note: str | None = None,
) -> None:
    """Add a flag for each field, with its default and the text of its docstring entry.

    A flag that is not given sets nothing: `given_fields` leaves its field to the dataclass.

    Args:
        parser: Where to.
        title: Heading of the flags in the help.
        settings: A dataclass with a Google docstring.
        only: Fields to add; None for all.
        renamed: Other names for some, where two dataclasses have the same.
        note: A line below the heading.
    """
    group = parser.add_argument_group(title, note)
    texts = attribute_texts(settings)
    for field in dataclasses.fields(settings):
        if only is not None and field.name not in only:
            continue
        name = (renamed or {}).get(field.name, field.name).replace("_", "-")
        group.add_argument(
            f"-{name}" if len(name) == 1 else f"--{name}",
            dest=destination(settings, field.name),
            default=argparse.SUPPRESS,
            help=f"{texts[field.name]} (default: {shown(field.default)})".replace("%", "%%"),
            **spelling_of(field),
        )


def given_fields(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Collect the fields of a dataclass whose flags were given, under the field's names.

    Their types are what `spelling_of` read; argparse has no way to tell a type checker.
    """
    given = vars(args)
    return {
        field.name: given[key]
        for field in dataclasses.fields(settings)
        if (key := destination(settings, field.name)) in given
    }


def destination(settings: type, name: str) -> str:
    """Name a field's place in the parsed arguments: two dataclasses may share a field name."""
    return f"{settings.__name__}.{name}"


def spelling_of(field: dataclasses.Field[object]) -> Spelling:
    """Say how the values of a field are written, by its type."""
    kinds = set(union_members(field.type))
    is_optional = types.NoneType in kinds
    kinds.discard(types.NoneType)
    if kinds == {bool}:
        return {"action": argparse.BooleanOptionalAction}
    if str in kinds and len(kinds) == 2 or kinds == {Sequence[str]}:
        return {"action": "append", "metavar": "TEXT"}
    (kind,) = kinds
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind == Sequence[int]:
        return {"type": integers, "metavar": "ID,ID,..."}
    if kind == Mapping[int, float]:
        return {"type": biases, "metavar": "ID=BIAS,..."}
    read, metavar = READERS[kind]
    return {"type": optional(read) if is_optional else read, "metavar": metavar}


def union_members(kind: object) -> tuple[object, ...]:
    """List the types of a union; another type is alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def optional(read: Callable[[str], T]) -> Callable[[str], T | None]:
    """Read a value, or `none`."""

    def read_optional(text: str) -> T | None:
        return None if text.lower() == "none" else read(text)

    # What argparse calls it in "invalid … value".
    read_optional.__name__ = f"{getattr(read, '__name__', 'value')} or 'none'"
    return read_optional


def integers(text: str) -> tuple[int, ...]:
    """Read integers separated by commas or spaces."""
    return tuple(int(word) for word in re.split(r"[,\s]+", text.strip()))


def biases(text: str) -> dict[int, float]:
    """Read `ID=BIAS` pairs separated by commas."""
    pairs = (pair.split("=") for pair in text.split(","))
    return {int(token): float(bias) for token, bias in pairs}


def shown(default: object) -> str:
    """Write a default as it would be given."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default is None else str(default)


def attribute_texts(settings: type) -> dict[str, str]:
    """Read what the `Attributes` section of a docstring says of each field.

    Names of constants and of other fields, which stand in backticks, become values and flags.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    section = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", section, re.M)
    module = vars(sys.modules[settings.__module__])

    def spelled(match: re.Match[str]) -> str:
        name = match[1]
        return f"--{name.replace('_', '-')}" if name in names else str(module.get(name, name))

    found = {}
    for name, text in entries:
        text = re.sub(r"`(\w+)`", spelled, " ".join(text.split())).replace("None", "none")
        found[name] = text[0].lower() + text[1:].rstrip(".")
    return {name: found.get(name, "") for name in names}
