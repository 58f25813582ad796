"""The committed code is what the `.proto` files give, and no released call of them breaks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
)

from serve.proto.distkv.v1 import control_pb2, inference_pb2
from serve.proto.make import FOLDER, INTERNAL_FOLDER, RELEASED, ROOT, make

Field = FieldDescriptorProto


def test_generated_code_is_current(tmp_path: Path) -> None:
    make(tmp_path)

    for folder in (FOLDER, INTERNAL_FOLDER):
        made = {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
        there = {path.name: path.read_text() for path in (ROOT / folder).glob("*_pb2*")}
        assert made == there


def read(path: Path) -> FileDescriptorSet:
    return FileDescriptorSet.FromString(path.read_bytes())


def messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    """All messages by name, those inside others too."""
    left = [(file.package, one) for file in files.file for one in file.message_type]
    while left:
        scope, message = left.pop()
        name = f"{scope}.{message.name}"
        yield name, message
        left += [(name, one) for one in message.nested_type]


def enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        yield from ((f"{file.package}.{one.name}", one) for one in file.enum_type)
    for name, message in messages(files):
        yield from ((f"{name}.{one.name}", one) for one in message.enum_type)


def facts(files: FileDescriptorSet) -> Iterator[str]:
    """Everything that callers depend on, in one line each."""
    for file in files.file:
        for service in file.service:
            for rpc in service.method:
                yield (
                    f"rpc {file.package}.{service.name}.{rpc.name} {rpc.input_type} "
                    f"{rpc.client_streaming} {rpc.output_type} {rpc.server_streaming}"
                )
    for name, message in messages(files):
        yield f"message {name}"
        for field in message.field:
            # A oneof that `optional` makes up is as much of the field as one that was written.
            oneof = (
                message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            )
            yield (
                f"field {name}.{field.name} = {field.number} {Field.Label.Name(field.label)} "
                f"{Field.Type.Name(field.type)} {field.type_name} oneof {oneof!r}"
            )
    for name, enum in enums(files):
        yield from (f"value {name}.{value.name} = {value.number}" for value in enum.value)


def broken(released: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """List what was released and is not so any more."""
    return sorted(set(facts(released)) - set(facts(now)))


def test_nothing_released_is_broken() -> None:
    now = FileDescriptorSet()
    for module in (control_pb2, inference_pb2):
        module.DESCRIPTOR.CopyToProto(now.file.add())

    assert broken(read(RELEASED), now) == []


def message_of(files: FileDescriptorSet, name: str) -> DescriptorProto:
    return dict(messages(files))[f"distkv.v1.{name}"]


def remove_field(files: FileDescriptorSet) -> None:
    del message_of(files, "Usage").field[0]


def renumber_field(files: FileDescriptorSet) -> None:
    message_of(files, "Usage").field[0].number = 99


def retype_field(files: FileDescriptorSet) -> None:
    message_of(files, "Usage").field[0].type = Field.TYPE_STRING


def repeat_field(files: FileDescriptorSet) -> None:
    message_of(files, "AbortRequest").field[0].label = Field.LABEL_REPEATED


def forget_presence(files: FileDescriptorSet) -> None:
    message_of(files, "SamplingParams").field[0].ClearField("oneof_index")


def remove_rpc(files: FileDescriptorSet) -> None:
    del files.file[0].service[0].method[0]


def stream_rpc(files: FileDescriptorSet) -> None:
    files.file[0].service[0].method[0].server_streaming = True


def renumber_enum(files: FileDescriptorSet) -> None:
    dict(enums(files))["distkv.v1.FinishReason"].value[1].number = 9


@pytest.mark.parametrize(
    "change",
    [
        remove_field,
        renumber_field,
        retype_field,
        repeat_field,
        forget_presence,
        remove_rpc,
        stream_rpc,
        renumber_enum,
    ],
)
def test_a_breaking_change_is_seen(change: object) -> None:
    now = read(RELEASED)
    assert callable(change)
    change(now)

    assert len(broken(read(RELEASED), now)) == 1


def test_a_new_field_a_new_message_and_a_new_value_break_nothing() -> None:
    now = read(RELEASED)
    message_of(now, "Usage").field.add(name="more", number=77, type=Field.TYPE_INT32)
    now.file[0].message_type.add(name="New")
    dict(enums(now))["distkv.v1.FinishReason"].value.add(name="NEW", number=7)

    assert broken(read(RELEASED), now) == []
