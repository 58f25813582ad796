"""This package's own gRPC service, without the service's client: that one keeps whole answers."""

from collections.abc import AsyncIterator

import grpc

from serve.bench.backend import About, Failed, Piece, Usage
from serve.bench.settings import BenchSettings
from serve.bench.workload import Item
from serve.client.connection import connect, heard_of
from serve.client_settings import ClientSettings
from serve.proto.distkv.v1 import inference_pb2
from serve.translate import message_of_request


class GrpcBackend:
    """A DistKV server over gRPC. Needs a running event loop."""

    def __init__(self, settings: BenchSettings, connection: ClientSettings) -> None:
        """Prepare; the connection is made by the first call.

        Raises:
            ConfigError: A setting cannot be.
            OSError: A file of keys or certificates cannot be read.
        """
        self._settings = settings
        self._connection = connect(grpc.aio, connection)
        self._inference = self._connection.inference
        names = {"temperature": settings.temperature, "ignore_eos": settings.ignore_eos or None}
        self._sampling = {name: value for name, value in names.items() if value is not None}

    async def about(self) -> About:
        """Ask what is served."""
        try:
            info = await self._inference.GetModelInfo(
                inference_pb2.GetModelInfoRequest(), metadata=self._connection.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise heard_of(error).error from error
        return About(self._settings.model or info.model, info.vocab_size, info.version)

    def prepare(self, item: Item, model: str) -> inference_pb2.GenerateRequest:
        """Write the message; a server has one model, so that its name is not sent."""
        prompt = item.prompt if isinstance(item.prompt, str) else item.prompt.tolist()
        sampling = self._sampling | {"max_tokens": item.output_tokens}
        message = message_of_request(prompt, sampling)
        message.return_prompt_token_ids = False
        return message

    async def stream(self, request: inference_pb2.GenerateRequest) -> AsyncIterator[Piece]:
        """Call, and read the messages of the answer."""
        call = self._inference.GenerateStream(
            request, timeout=self._settings.timeout_s, metadata=self._connection.metadata
        )
        try:
            async for message in call:
                usage = None
                if message.HasField("usage"):
                    counted = message.usage
                    usage = Usage(counted.prompt_tokens, counted.completion_tokens)
                if any(sample.token_ids for sample in message.outputs):
                    yield Piece("".join(sample.text for sample in message.outputs), usage=usage)
                elif usage is not None:
                    yield Piece(is_output=False, usage=usage)
        except grpc.aio.AioRpcError as error:
            raise Failed(f"{error.code().name}: {error.details()}") from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.channel.close()
