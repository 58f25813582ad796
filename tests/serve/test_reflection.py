"""A caller without our files can do what `grpcurl` does: list, describe, and call."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2_grpc

from tests.serve.running import Code, Running, failure_of


def ask(channel: grpc.Channel, **question: Any) -> pb.ServerReflectionResponse:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([pb.ServerReflectionRequest(**question)]))
    return answer


@pytest.fixture
def pool(service: Running) -> descriptor_pool.DescriptorPool:
    """All that the server says of itself, in a pool that knows nothing else."""
    pool, known = descriptor_pool.DescriptorPool(), set[str]()

    def add(answer: pb.ServerReflectionResponse) -> None:
        for encoded in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
            if file.name not in known:
                known.add(file.name)
                for needed in file.dependency:
                    add(ask(service.channel, file_by_filename=needed))
                pool.Add(file)

    listed = ask(service.channel, list_services="").list_services_response
    for one in listed.service:
        add(ask(service.channel, file_containing_symbol=one.name))
    return pool


def call(
    service: Running, pool: descriptor_pool.DescriptorPool, name: str, request: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Call a method by its name, JSON in and JSON out."""
    method = pool.FindMethodByName(name)
    make = message_factory.GetMessageClass
    message = json_format.ParseDict(request, make(method.input_type)())
    kind = "unary_stream" if method.server_streaming else "unary_unary"
    stub = getattr(service.channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=make(method.output_type).FromString,
    )
    answers = stub(message) if method.server_streaming else [stub(message)]
    for answer in answers:
        yield json_format.MessageToDict(answer, preserving_proto_field_name=True)


def test_methods_are_described(pool: descriptor_pool.DescriptorPool) -> None:
    methods = pool.FindServiceByName("distkv.v1.Inference").methods

    assert [one.name for one in methods] == [
        "Generate",
        "GenerateStream",
        "Abort",
        "Attach",
        "GetModelInfo",
    ]
    assert pool.FindMessageTypeByName("distkv.v1.SamplingParams").fields_by_name["top_p"]


def test_methods_can_be_called(service: Running, pool: descriptor_pool.DescriptorPool) -> None:
    (info,) = call(service, pool, "distkv.v1.Inference.GetModelInfo", {})
    assert info["model"] == "small"

    request = {
        "token_ids": {"ids": [5, 6]},
        "sampling": {"max_tokens": 5, "ignore_eos": True, "temperature": 0},
    }
    (whole,) = call(service, pool, "distkv.v1.Inference.Generate", request)
    pieces = list(call(service, pool, "distkv.v1.Inference.GenerateStream", request))
    streamed = [id_ for piece in pieces for one in piece["outputs"] for id_ in one["token_ids"]]
    assert streamed == whole["outputs"][0]["token_ids"]
    assert pieces[-1]["usage"]["completion_tokens"] == "5"


def test_what_is_not_there_is_said(service: Running) -> None:
    answer = ask(service.channel, file_containing_symbol="distkv.v1.Nothing")
    assert answer.error_response.error_code == Code.NOT_FOUND.value[0]

    # Callers ask for this version first, and take the older one when it is not known.
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    request = pb.ServerReflectionRequest(list_services="").SerializeToString()
    failure = failure_of(service.channel.stream_stream(path), iter([request]))
    assert failure.code is Code.UNIMPLEMENTED
