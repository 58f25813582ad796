"""An OpenAI-compatible server that answers as it is told, at times it is told."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.serve.running import Loop


class FakeServer:
    """Answers each request with `pieces` pieces.

    Attributes:
        requests: Bodies of what was asked, in order.
        headers: Of the last request.
        first_s: Wait before the first piece.
        gap_s: Wait before every other.
        pieces: Pieces of an answer.
        has_usage: Whether answers end with usage; it counts two tokens for a piece.
        bad: By number of the request, from 0: what goes wrong with it.
        interrupt_at: Number of the request at which this process gets a SIGINT; it and later
            ones are not answered.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.requests: list[dict[str, Any]] = []
        self.headers: Mapping[str, str] = {}
        self.first_s = 0.0
        self.gap_s = 0.0
        self.pieces = 3
        self.has_usage = True
        self.bad: dict[int, str] = {}
        self.interrupt_at: int | None = None
        self.model: dict[str, Any] = {"id": "fake", "vocab_size": 100}
        self._runner = loop.run(self._start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    def close(self) -> None:
        self.loop.run(self._runner.cleanup())

    async def _models(self, request: web.Request) -> web.Response:
        self.headers = request.headers
        if "models" in self.bad.values():
            return web.json_response({"error": {"message": "no key"}}, status=401)
        return web.json_response({"data": [self.model]})

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "1.2.3"})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        number, body = len(self.requests), await request.json()
        self.requests.append(body)
        self.headers = request.headers
        bad = self.bad.get(number)
        if bad == "refused":
            return web.json_response({"error": {"message": "queue full"}}, status=429)
        if bad == "html":
            return web.Response(text="<p>proxy</p>", status=502)
        if self.interrupt_at is not None and number >= self.interrupt_at:
            if number == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        is_chat = request.path.endswith("chat/completions")
        if is_chat:
            await self._send(answer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(self.first_s)
        for place in range(self.pieces):
            if place:
                await asyncio.sleep(self.gap_s)
            if bad == "in stream" and place == 1:
                await self._send(answer, {"error": {"message": "device lost"}})
                return answer
            if bad == "cut off" and place == 1:
                return answer
            if bad == "nonsense":
                await answer.write(b"data: {]\n\n")
            part = {"delta": {"content": "w"}} if is_chat else {"text": "w"}
            await answer.write(b": still here\n\n")
            await self._send(answer, {"choices": [part]})
        if self.has_usage:
            prompt = body.get("prompt", ())
            usage = {"prompt_tokens": len(prompt) + 1, "completion_tokens": 2 * self.pieces}
            await self._send(answer, {"choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _send(self, answer: web.StreamResponse, event: dict[str, Any]) -> None:
        await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
