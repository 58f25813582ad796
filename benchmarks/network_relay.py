"""A relay of TCP connections that can make them slow, or stand still."""

import asyncio
import contextlib
import threading
from types import TracebackType

CHUNK = 65536


class Relay:
    """Hands on what comes in both directions, in order; runs on a thread of its own.

    A connection ends when either of its ends does.

    Attributes:
        delay_s: Seconds that a byte is held, each way; may be set at any time.
    """

    def __init__(self, listen: tuple[str, int], target: tuple[str, int]) -> None:
        """Listen nowhere yet.

        Args:
            listen: Address and port of this machine; port 0 takes a free one.
            target: Where connections are led.
        """
        self.delay_s = 0.0
        self._listen = listen
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        starting = asyncio.start_server(self._connect, *self._listen)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def stall(self) -> None:
        """Hand nothing on any more; connections stay open, and new ones are taken."""
        self._loop.call_soon_threadsafe(self._may_go_on.clear)

    def go_on(self) -> None:
        """Hand on again, what was held too."""
        self._loop.call_soon_threadsafe(self._may_go_on.set)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Asyncio complains of one that was cancelled, and nobody waits for it but `_close`.
        with contextlib.suppress(asyncio.CancelledError):
            await self._join(reader, writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(writer.transport.abort)
            try:
                other_reader, other_writer = await asyncio.open_connection(*self._target)
            except OSError:
                return
            undo.callback(other_writer.transport.abort)
            ways = [
                asyncio.ensure_future(self._pass_on(*way))
                for way in ((reader, other_writer), (other_reader, writer))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = asyncio.ensure_future(self._write(held, writer))
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(CHUNK):
                    held.put_nowait((self._loop.time() + self.delay_s, piece))
            held.put_nowait((0.0, b""))
            await writing
        finally:
            writing.cancel()

    async def _write(
        self, held: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter
    ) -> None:
        while (item := await held.get())[1]:
            due, piece = item
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._may_go_on.wait()
            if writer.is_closing():
                return
            with contextlib.suppress(OSError):
                writer.write(piece)
                await writer.drain()
