"""`distkv.v1.Inference`: generating, aborting, and what model there is."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import distkv_jax
from distkv_jax.errors import RequestNotFound
from serve.ask import Ask
from serve.dispatch import Dispatcher
from serve.gate import ARRIVAL, CALLER
from serve.journal.requests import DurableRequests, is_durable
from serve.observe.context import serving, trace_headers
from serve.observe.record import Record
from serve.proto.distkv.v1 import inference_pb2 as pb
from serve.proto.distkv.v1 import inference_pb2_grpc
from serve.stream import Stream
from serve.translate import (
    add_updates,
    first_message,
    message_of_sampling,
    naming_fields,
    prompt_of,
    request_id_of,
    sampling_of,
)

ACCEPTED = "distkv-accepted"
"""Key of the initial metadata that names a durable request."""
LONGEST_DEADLINE_S = 1e8
"""gRPC gives a time beyond this where there is no deadline."""


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Translates messages, and leaves the rest to the dispatcher."""

    def __init__(
        self, dispatcher: Dispatcher, model_name: str, durable: DurableRequests | None = None
    ) -> None:
        """Serve inference.

        Args:
            dispatcher: Where requests go.
            model_name: As the server calls its model.
            durable: Where durable requests go; None for nowhere.
        """
        self._durable = durable
        self._dispatcher = dispatcher
        self._defaults = dispatcher.llm.get_default_sampling_params()
        self._model_name = model_name

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """Answer when all samples have ended."""
        async with self._open("grpc.Generate", request, context, is_whole=True) as stream:
            answer = self._begin(stream, request)
            # Once, also when it has ended by now: a whole reader is woken only then.
            add_updates(answer, await stream.take())
            answer.usage.CopyFrom(usage_of(stream.record))
        return answer

    async def GenerateStream(self, request: pb.GenerateRequest, context: Any) -> None:
        """Answer piece by piece; what comes while a piece is written goes into the next."""
        async with self._open("grpc.GenerateStream", request, context, is_whole=False) as stream:
            await pump(stream, self._begin(stream, request), context)

    async def Attach(self, request: pb.AttachRequest, context: Any) -> None:
        """Answer piece by piece what a durable request gave and gives, from given tokens on."""
        name = request_id_of(request)
        if self._durable is None:
            raise RequestNotFound(
                f"request_id {name!r} is of no durable request, there is no journal"
            )
        with serving(name):
            async with self._durable.attach(CALLER.get(), name, request.offsets) as stream:
                has_ids = request.return_prompt_token_ids
                await pump(stream, first_message(stream.request, name, has_ids=has_ids), context)

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        """End a request of the same caller."""
        del context
        caller, name = CALLER.get(), request_id_of(request)
        if self._durable is None or not await self._durable.abort(caller, name):
            self._dispatcher.abort(caller, name)
        return pb.AbortResponse()

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: Any
    ) -> pb.GetModelInfoResponse:
        """Tell what is served."""
        del request, context
        llm = self._dispatcher.llm
        return pb.GetModelInfoResponse(
            model=self._model_name,
            version=distkv_jax.__version__,
            max_model_len=llm.max_model_len,
            vocab_size=llm.model_config.vocab_size,
            has_tokenizer=llm.has_tokenizer,
            block_size=llm.config.block_size,
            num_instances=llm.mesh_shape["instance"],
            instance_tokens=llm.capacity.instance_tokens,
            mesh_tokens=llm.capacity.mesh_tokens,
            request_tokens=llm.capacity.request_tokens,
            default_sampling=message_of_sampling(self._defaults),
        )

    @contextlib.asynccontextmanager
    async def _open(
        self, operation: str, request: pb.GenerateRequest, context: Any, *, is_whole: bool
    ) -> AsyncIterator[Stream]:
        left: float | None = context.time_remaining()
        deadline = None
        if left is not None and left < LONGEST_DEADLINE_S:
            deadline = time.monotonic() + left
        with naming_fields():
            arrival = ARRIVAL.get()
            with self._dispatcher.reading(CALLER.get(), operation, arrival=arrival):
                ask = Ask(
                    prompt=prompt_of(request),
                    params=sampling_of(request.sampling, self._defaults),
                    request_id=request_id_of(request),
                    priority=request.priority,
                    deadline=deadline,
                    operation=operation,
                    carrier=trace_headers(context.invocation_metadata()),
                    arrival=arrival,
                )
                asked = request.durable if request.HasField("durable") else None
                durable = self._durable if is_durable(asked, self._durable) else None
            opener = durable or self._dispatcher
            async with opener.open(CALLER.get(), ask, is_whole=is_whole) as stream:
                if durable is not None:
                    # Tells that it is accepted, before there is a token.
                    await context.send_initial_metadata(((ACCEPTED, stream.record.request_id),))
                yield stream

    def _begin(self, stream: Stream, request: pb.GenerateRequest) -> pb.GenerateResponse:
        name = stream.record.request_id
        return first_message(stream.request, name, has_ids=request.return_prompt_token_ids)


async def pump(stream: Stream, piece: pb.GenerateResponse, context: Any) -> None:
    """Write a stream, what comes while a piece is written in the next one; then what it took.

    Args:
        stream: To be read to its end.
        piece: The first, with what stands in it.
        context: Of the call.
    """
    while True:
        add_updates(piece, await stream.take())
        if stream.is_done:
            break
        await stream.write(context.write(piece))
        piece = pb.GenerateResponse()
    piece.usage.CopyFrom(usage_of(stream.record))
    # The engine is done with it, its quota and the drain are when this piece is gone.
    await stream.write(context.write(piece))


def usage_of(record: Record) -> pb.Usage:
    """Sum a request up."""
    return pb.Usage(
        prompt_tokens=record.num_prompt_tokens,
        completion_tokens=record.num_tokens,
        cached_tokens=record.num_cached_tokens,
        remote_kv_tokens=record.remote_kv_tokens,
        instances_used=sorted(record.instances_used),
    )
