"""What a person sees while a model loads, compiles and generates."""

from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Capacity(NamedTuple):
    """Tokens of KV that fit.

    Attributes:
        instance_tokens: In one instance's pool.
        mesh_tokens: In all pools together.
        request_tokens: For one request, if it were alone.
    """

    instance_tokens: int
    mesh_tokens: int
    request_tokens: int


class Progress:
    """Progress bars on standard error; silent when not wanted. Use it in a `with`."""

    def __init__(self, is_shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not is_shown)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not is_shown,
            transient=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tasks:
            self._bars.stop()

    def weights(self, done: int, total: int) -> None:
        """Show bytes of weights read."""
        self._show("weights", done, total, f"{done / 2**20:,.0f} of {total / 2**20:,.0f} MiB")

    def programs(self, done: int, total: int, name: str) -> None:
        """Show programs compiled, the last one's name beside them."""
        self._show("programs", done, total, f"{done} of {total}: {name}")

    def requests(self, done: int, total: int, num_tokens: int) -> None:
        """Show requests finished and tokens generated."""
        self._show("requests", done, total, f"{done} of {total}, {num_tokens:,} tokens")

    def print_capacity(self, capacity: Capacity, max_model_len: int) -> None:
        """Print the start-up lines people look for, for one instance and for the mesh."""
        alone, together = capacity.instance_tokens, capacity.mesh_tokens
        longest = min(max_model_len, capacity.request_tokens)
        for line in (
            f"KV cache size: {alone:,} tokens on one instance, {together:,} on the mesh",
            f"Maximum concurrency for {longest:,} tokens per request: "
            f"{alone / longest:.2f}x on one instance, {together / longest:.2f}x on the mesh",
        ):
            self._console.print(line, highlight=False, soft_wrap=True)

    def _show(self, name: str, done: int, total: int, detail: str) -> None:
        if name not in self._tasks:
            # Not before: bars that show nothing still print an empty line when they stop.
            self._bars.start()
            self._tasks[name] = self._bars.add_task(name, total=total, detail="")
        self._bars.update(self._tasks[name], completed=done, detail=detail)
