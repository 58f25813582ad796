"""One call on its way through the engine: opened, answered whole or in pieces, always let go."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from distkv_jax.engine.outputs import PositionLogprobs, Update
from serve.dispatch import Dispatcher
from serve.errors import naming
from serve.http.answer import write_answer
from serve.http.body import ClientGone
from serve.http.calls import Call
from serve.http.events import DONE, EventWriter, encoded, json_bytes
from serve.http.failure import failure_event
from serve.http.forms import Form, Place
from serve.http.pieces import Piece, Prompt, gathered
from serve.stream import Stream

MANY_POSITIONS = 64
"""Log-probabilities of more positions than these are written in a thread."""


class Opened(NamedTuple):
    """A prompt's request under way.

    Attributes:
        stream: Its updates.
        number: Which prompt.
        echo: Its text, where it is to be repeated.
    """

    stream: Stream
    number: int
    echo: str


class Generation:
    """An ASGI app that answers one call.

    Nothing is sent before there is a token: whatever fails until then has a status of its own.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        call: Call,
        form: Form,
    ) -> None:
        """Be ready to answer.

        Args:
            dispatcher: Where requests go.
            call: What is asked.
            form: How it is written.
        """
        self._dispatcher = dispatcher
        self._call = call
        self._form = form
        self._base = {
            "id": f"{form.prefix}{call.request_id}",
            "object": form.piece if call.is_stream else form.whole,
            "created": int(time.time()),
            "model": call.model,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer.

        Raises:
            DistKVError: It failed before anything was sent.
        """
        del receive
        if self._call.is_stream:
            await self._stream(EventWriter(scope, send))
        else:
            await self._whole(scope, send)

    async def _whole(self, scope: Scope, send: Send) -> None:
        async with self._open(is_whole=True) as opened:
            many = await all_of([one.stream.take() for one in opened])
            positions = sum(len(update.logprobs) for updates in many for update in updates)
            positions += sum(
                len(update.prompt_logprobs or ()) for updates in many for update in updates
            )
            if positions > MANY_POSITIONS:
                body = await asyncio.to_thread(self._answer, opened, many)
            else:
                body = self._answer(opened, many)
            await write_answer(body, opened[-1].stream, scope, send)

    def _answer(self, opened: Sequence[Opened], many: Sequence[list[Update]]) -> bytes:
        choices: list[dict[str, Any]] = []
        head: dict[str, Any] = {}
        for one, updates in zip(opened, many, strict=True):
            places = self._places(one, prompt_positions(updates))
            pieces = gathered(updates)
            for index, place in enumerate(places):
                piece = self._heard(pieces.get(index, Piece()))
                choices.append(self._form.choice(self._call, place, piece, is_delta=False))
            head = head or self._form.head(self._call, places[0].prompt)
        return json_bytes({**self._base, **head, "choices": choices, "usage": self._usage(opened)})

    async def _stream(self, writer: EventWriter) -> None:
        try:
            async with self._open(is_whole=False) as opened:
                await all_of([self._pump(one, writer) for one in opened])
                if self._call.has_usage:
                    usage = self._usage(opened)
                    last = encoded({**self._base, "choices": [], "usage": usage}) + DONE
                else:
                    last = DONE
                # The drain and the quota are done with it when the end is gone.
                await opened[-1].stream.write(writer.write(last, is_last=True))
        except Exception as error:
            if not writer.has_begun or isinstance(error, ClientGone):
                raise
            # No [DONE]: a client that waits for it must not take half an answer for a whole one.
            await writer.write_last_words(encoded(failure_event(error)))

    async def _pump(self, one: Opened, writer: EventWriter) -> None:
        """Write pieces; what comes while one is written goes into the next."""
        call, stream = self._call, one.stream
        wants_prompt = call.echoes_logprobs or call.has_prompt_logprobs
        places: list[Place] | None = None
        held: list[Update] = []
        while True:
            updates = held + await stream.take()
            has_ended = stream.is_done
            if places is None:
                positions = prompt_positions(updates)
                if wants_prompt and positions is None and not has_ended:
                    # Another sample was first; every choice begins with the prompt's.
                    held = updates
                    continue
                places, held = self._places(one, positions), []
            if data := b"".join(map(encoded, self._events(places, updates))):
                await stream.write(writer.write(data))
            if has_ended:
                return

    def _events(self, places: Sequence[Place], updates: Iterable[Update]) -> list[dict[str, Any]]:
        call, events = self._call, []
        for index, piece in gathered(updates).items():
            piece, place = self._heard(piece), places[index]
            # A token without text is told too, as by vLLM: a model may have no tokenizer, and who
            # measures must see when its tokens come.
            if not (piece.token_ids or piece.text or piece.finish_reason):
                continue
            head = {} if place.has_begun or index else self._form.head(call, place.prompt)
            choice = self._form.choice(call, place, piece, is_delta=True)
            events.append({**self._base, **head, "choices": [choice]})
            if call.has_usage:
                events[-1]["usage"] = None
        return events

    def _heard(self, piece: Piece) -> Piece:
        """Give a piece as it is told: without what nobody asked to generate."""
        if not self._call.is_silent:
            return piece
        return Piece(finish_reason=piece.finish_reason and "length")

    def _places(
        self, one: Opened, positions: Sequence[PositionLogprobs | None] | None
    ) -> list[Place]:
        request = one.stream.request
        first_token = ""
        if self._call.echoes_logprobs:
            token, llm = request.prompt_token_ids[0], self._dispatcher.llm
            first_token = f"token_id:{token}"
            if llm.has_tokenizer:
                first_token = llm.get_tokenizer().token_text(token)
        prompt = Prompt(request.prompt_token_ids, positions, one.echo, first_token)
        n = request.params.n
        return [Place(one.number * n + index, prompt) for index in range(n)]

    @contextlib.asynccontextmanager
    async def _open(self, *, is_whole: bool) -> AsyncIterator[list[Opened]]:
        """Submit all prompts."""
        call = self._call
        opening = self._dispatcher.open_all(call.caller, call.asks, is_whole=is_whole)
        async with contextlib.AsyncExitStack() as stack:
            with naming(call.paths):
                streams = await stack.enter_async_context(opening)
            yield [
                Opened(stream, number, echo)
                for number, (stream, echo) in enumerate(zip(streams, call.echoes, strict=True))
            ]

    def _usage(self, opened: Sequence[Opened]) -> dict[str, Any]:
        records = [one.stream.record for one in opened]
        prompt_tokens = sum(record.num_prompt_tokens for record in records)
        num_tokens = 0 if self._call.is_silent else sum(record.num_tokens for record in records)
        cached_tokens = sum(record.num_cached_tokens for record in records)
        instances = itertools.chain.from_iterable(record.instances_used for record in records)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": prompt_tokens + num_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
            "distkv": {
                "remote_kv_tokens": max(record.remote_kv_tokens for record in records),
                "instances_used": sorted(set(instances)),
            },
        }


def prompt_positions(updates: Iterable[Update]) -> tuple[PositionLogprobs | None, ...] | None:
    """Find the prompt's log-probabilities, which come once."""
    found = (update.prompt_logprobs for update in updates)
    return next((positions for positions in found if positions is not None), None)


async def all_of(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Do several things at once; the first that fails ends the others and is raised."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
