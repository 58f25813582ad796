"""Server-sent events, as far as OpenAI-compatible servers use them: lines of `data:`."""

from collections.abc import Iterator


class EventReader:
    """Puts events together from bytes that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and give the data of every line that is now whole.

        Comments, which servers send to keep a connection open, and other fields are left out.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip()
