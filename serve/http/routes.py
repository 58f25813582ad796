"""OpenAI's paths, and those that say what is served and whether it is."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import distkv_jax
from serve.dispatch import Dispatcher
from serve.http.access import SAFE_METHODS, Access, GuardedRoute, caller_of, guarded_route
from serve.http.bodies import Body, ChatBody, CompletionBody
from serve.http.calls import Call, CallMaker, unknown_model
from serve.http.forms import ChatForm, CompletionForm, Form
from serve.http.generation import Generation
from serve.http.intake import Intake
from serve.http.openapi import document
from serve.http.structure import SMALL_BODY, check_structure, most_values
from serve.http.validate import parsed
from serve.settings import ServerSettings

B = TypeVar("B", bound=Body)
HEALTH = "/health"


class OpenAIRoutes:
    """Endpoints of one model."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: ServerSettings,
        model_name: str,
        *,
        has_keys: bool,
        is_answering: Callable[[], bool],
    ) -> None:
        """Answer for a model.

        Args:
            dispatcher: Where requests go.
            settings: Limits and intervals.
            model_name: As the server calls it.
            has_keys: Whether callers need one.
            is_answering: Whether the engine does.
        """
        self._is_answering = is_answering
        self._dispatcher = dispatcher
        self._calls = CallMaker(dispatcher, model_name)
        self._intake = Intake(settings.max_message_mib * 2**20)
        self._most_values = most_values(dispatcher.llm)
        self._created = int(time.time())
        self._document = document(has_keys=has_keys, max_values=self._most_values)

    def routes(self) -> list[GuardedRoute]:
        """List them; a probe of health has no key."""
        return [
            guarded_route(path, endpoint, methods=methods, access=access)
            for methods, path, endpoint, access in (
                (SAFE_METHODS, HEALTH, self.health, Access.OPEN),
                (["POST"], "/v1/completions", self.completions, Access.CALLER),
                (["POST"], "/v1/chat/completions", self.chat, Access.CALLER),
                (SAFE_METHODS, "/v1/models", self.models, Access.CALLER),
                (SAFE_METHODS, "/v1/models/{name:path}", self.model, Access.CALLER),
                (SAFE_METHODS, "/version", self.version, Access.CALLER),
                (SAFE_METHODS, "/openapi.json", self.openapi, Access.CALLER),
            )
        ]

    async def completions(self, request: Request) -> Generation:
        """Complete prompts."""
        arrival = time.monotonic()
        with self._reading(request, "http.completions", arrival):
            body = await self._read(request, CompletionBody)
            call = await self._calls.completion(request, body, arrival)
        return self._generation(call, CompletionForm())

    async def chat(self, request: Request) -> Generation:
        """Continue a conversation."""
        arrival = time.monotonic()
        with self._reading(request, "http.chat_completions", arrival):
            body = await self._read(request, ChatBody)
            call = await self._calls.chat(request, body, arrival)
        return self._generation(call, ChatForm())

    async def models(self, request: Request) -> Response:
        """List the one model there is."""
        del request
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """Tell about a model."""
        name = request.path_params["name"]
        if name != self._calls.model_name:
            raise unknown_model(name, self._calls.model_name, field="model")
        return JSONResponse(self._card())

    async def health(self, request: Request) -> Response:
        """Say whether requests are taken."""
        del request
        if self._dispatcher.is_draining:
            return JSONResponse({"status": "draining"}, 503, {"retry-after": "1"})
        if not self._is_answering():
            return JSONResponse({"status": "the engine does not answer"}, 503)
        return JSONResponse({"status": "serving"})

    async def version(self, request: Request) -> Response:
        """Say what serves."""
        del request
        return JSONResponse({"version": distkv_jax.__version__})

    async def openapi(self, request: Request) -> Response:
        """Give the description that programs read."""
        del request
        return JSONResponse(self._document)

    async def _read(self, request: Request, kind: type[B]) -> B:
        async with self._intake.body_of(request, caller_of(request)) as data:
            if len(data) > SMALL_BODY:
                await asyncio.to_thread(check_structure, data, self._most_values)
            return parsed(kind, data)

    @contextlib.contextmanager
    def _reading(self, request: Request, operation: str, arrival: float) -> Iterator[None]:
        """Read a call's body: told to observers, and with a place of its caller's."""
        caller = caller_of(request)
        with self._dispatcher.reading(caller, operation, arrival=arrival):
            with self._dispatcher.quota.reading(caller):
                yield

    def _generation(self, call: Call, form: Form) -> Generation:
        return Generation(self._dispatcher, call, form)

    def _card(self) -> dict[str, object]:
        return {
            "id": self._calls.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "distkv",
            "max_model_len": self._dispatcher.llm.max_model_len,
            "vocab_size": self._dispatcher.llm.model_config.vocab_size,
        }
